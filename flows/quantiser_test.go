package flows

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/volume"
)

// quantisers are the words that choose each in tiny, and the codes of a latent that they make: their bits, how many, and the tensors of
// codebooks in an export.
var quantisers = []struct {
	words []string
	bits  float64
	depth int
	books []string
}{
	{[]string{"model.quantizer=cosine"}, 4, 1, []string{"codebook"}},
	{[]string{"model.quantizer=fsq", "model.levels=[5, 4, 3]", "model.embedding=3", "model.codes=60"}, math.Log2(60), 1, nil},
	{[]string{"model.quantizer=residual"}, 8, 2, []string{"codebook", "codebook2"}},
}

// TestQuantisersThereAndBack trains with each quantiser, measures and encodes the scans, decodes them, and takes the weights out and in.
func TestQuantisersThereAndBack(t *testing.T) {
	all, err := phantoms()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(all, "*.nii*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	scans := files[0]
	for _, q := range quantisers {
		t.Run(q.words[0], func(t *testing.T) {
			dir := t.TempDir()
			job := tiny(t, filepath.Join(dir, "run"), append(slices.Clone(q.words), validated, "train.max_steps=2")...)
			last, err := do(t, t.Context(), nil, job)
			if err != nil {
				t.Fatal(err)
			}
			if u := last.Metrics["val/codebook_usage"]; !(u > 0 && u <= 1) {
				t.Errorf("usage %v", u)
			}
			weights := filepath.Join(dir, "run", "checkpoints", checkpoint.LastName)
			run := func(text string, args ...any) {
				t.Helper()
				if err := mustLoad(t, fmt.Sprintf(text, args...)).Run(t.Context(), nil, UI{Out: io.Discard, Err: io.Discard}); err != nil {
					t.Fatal(err)
				}
			}
			run("flow: [read: {scans: [%q]}, tile: , batch: , infer: {checkpoint: %q}, merge: {mode: exact}, measure: , write: {dir: %q}]", scans, weights, filepath.Join(dir, "back"))
			run("flow: [read: {scans: [%q]}, encode: {checkpoint: %q}, save: {dir: %q, latents: true}]", scans, weights, filepath.Join(dir, "codes"))
			run("flow: [load: {codes: [%q]}, decode: {checkpoint: %q}, merge: , write: {dir: %q}]", filepath.Join(dir, "codes"), weights, filepath.Join(dir, "decoded"))
			run("flow: [load: {codes: [%q], use: quantised}, decode: {checkpoint: %q}, merge: , write: {dir: %q}]", filepath.Join(dir, "codes"), weights, filepath.Join(dir, "quantised"))

			var measures struct {
				Pooled map[string]any `json:"pooled"`
			}
			text, err := os.ReadFile(filepath.Join(dir, "back", "measures.json"))
			if err == nil {
				err = json.Unmarshal(text, &measures)
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := measures.Pooled["bits_per_voxel"].(float64); math.Abs(got-q.bits/8) > 1e-9 {
				t.Errorf("%v bits a voxel (want %v)", got, q.bits/8)
			}
			if got, _ := measures.Pooled["entropy_bits_per_voxel"].(float64); got <= 0 || got > q.bits/8 {
				t.Errorf("an entropy of %v bits a voxel (%v stored)", got, q.bits/8)
			}
			written, err := filepath.Glob(filepath.Join(dir, "back", "*.nii*"))
			if err != nil || len(written) != 1 {
				t.Fatal(written, err)
			}
			for _, path := range written {
				want, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				for _, way := range []string{"decoded", "quantised"} {
					if got, err := os.ReadFile(filepath.Join(dir, way, filepath.Base(path))); err != nil || !bytes.Equal(got, want) {
						t.Errorf("%s/%s isn't the reconstruction: %v", way, filepath.Base(path), err)
					}
				}
			}

			// Out and in.
			out := filepath.Join(dir, "export.safetensors")
			if err := Export(t.Context(), io.Discard, weights, out, ExportOptions{Weights: ExportRaw}); err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf("model.quantizer: %s, but", strings.TrimPrefix(q.words[0], "model.quantizer="))
			err = Export(t.Context(), io.Discard, weights, filepath.Join(dir, "theirs.safetensors"), ExportOptions{For: MedicalDiffusion})
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("exported for medicaldiffusion: %v", err)
			}
			snap, said, err := imported(t, out, ImportOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(said, "codebook: it has no counts") {
				t.Error(said)
			}
			before := named(last.Arrays)
			n := 0
			for _, a := range snap.Arrays {
				if module, _, _ := strings.Cut(a.Name, "."); module == "ema" {
					continue
				}
				n++
				equal(t, a.Name, a, before[a.Name])
			}
			var books []string
			for name := range named(snap.Arrays) {
				if book, ok := strings.CutSuffix(name, ".embeddings"); ok {
					books = append(books, book)
				}
			}
			if slices.Sort(books); !slices.Equal(books, q.books) || n < 20 {
				t.Errorf("%d arrays, codebooks %v (want %v)", n, books, q.books)
			}
			if a, b := model(t, snap), model(t, last); !a.Equal(&b) {
				t.Errorf("%+v (want %+v)", a, b)
			}
		})
	}
}

func model(t *testing.T, snap *volume.Snapshot) vqgan.Config {
	t.Helper()
	c, err := vqgan.ParseConfig(snap.Meta["model"])
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What the levels say needn't be written, whatever the preset has; what is written mustn't differ.
func TestLevelsOfFSQ(t *testing.T) {
	const flow = "\nflow:\n  - read: {scans: [x]}\n  - tile: {patch: [16, 16, 16]}\n  - batch:\n  - train: {%s}\n"
	for _, c := range []struct{ model, train, want string }{
		{"{preset: demo, quantizer: fsq, levels: [8, 5, 5, 5]}", "", ""},
		{"{quantizer: fsq, levels: [8, 5, 5, 5], codes: 1000, embedding: 4}", "", ""},
		{"{preset: demo, quantizer: fsq, levels: [8, 5, 5, 5]}", "codebook: {}", ""},
		{"{quantizer: fsq, levels: [8, 5, 5, 5], codes: 512}", "", "train.yaml:1: model.codes: 512, but levels are [8 5 5 5]: their product is 1000; leave it out"},
		{"{preset: demo, quantizer: fsq, levels: [8, 5, 5, 5], embedding: 8}", "", "train.yaml:1: model.embedding: 8, but levels are [8 5 5 5]: there are 4; leave it out"},
		{"{quantizer: fsq}", "", "train.yaml:1: model.levels: quantizer: fsq wants some, such as levels: [8, 5, 5, 5]"},
		{"{levels: [8, 5]}", "", "train.yaml:1: model.levels: [8 5] are those of quantizer: fsq, but it is ema"},
		{"{quantizer: fqs}", "", `train.yaml:1: model.quantizer: want one of ema, cosine, fsq, residual, got "fqs"; did you mean "fsq"?`},
		{"{quantizer: fsq, levels: [8, 5]}", "codebook: {restart: 2}", "train.yaml:6: train.codebook.restart: with model.quantizer: fsq there is no codebook; leave it out"},
		{"{quantizer: fsq, levels: [8, 5]}", "loss: {commitment: 0.5}", "train.yaml:6: train.loss.commitment: with model.quantizer: fsq there is no codebook; leave it out"},
	} {
		text := "model: " + c.model + fmt.Sprintf(flow, c.train)
		j, err := Load("train.yaml", []byte(text), nil)
		if c.want != "" {
			if err == nil || err.Error() != c.want {
				t.Errorf("%s: %v\nwant %s", c.model, err, c.want)
			}
			continue
		}
		if err != nil || j.model.Codes != 1000 || j.model.Embedding != 4 {
			t.Fatalf("%s: %+v, %v", c.model, j, err)
		}
		again, err := Load("config.yaml", j.resolved, nil) // as it is kept in the run's folder
		if err != nil || !again.model.Equal(&j.model) {
			t.Errorf("%s\n%s: %v", c.model, j.resolved, err)
		}
	}
}

// A run of before there was a choice goes on, one with another quantiser doesn't.
func TestQuantisersThatDiffer(t *testing.T) {
	j := tiny(t, t.TempDir())
	meta, err := j.identity()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ quantizer, want string }{
		{"", ""},
		{`"quantizer":"ema",`, ""},
		{`"quantizer":"cosine",`, `model.quantizer: is "ema", but x was trained with "cosine"; choose another run.dir (train.init takes over its weights), or set it back`},
	} {
		old := map[string]string{"stream": meta["stream"], "model": strings.Replace(meta["model"], `"quantizer":"ema",`, c.quantizer, 1)}
		if c.quantizer == "" && old["model"] == meta["model"] {
			t.Fatal("nothing changed")
		}
		got := ""
		if err := j.agrees(&volume.Snapshot{Meta: old}, "x"); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: %s\nwant %s", c.quantizer, got, c.want)
		}
	}
}

func TestImportOfQuantisersRefuses(t *testing.T) {
	without := theirs(t)
	for _, name := range []string{"codebook.embeddings", "codebook.N", "codebook.z_avg"} {
		delete(without, name)
	}
	twice := theirs(t)
	twice["codebook2.embeddings"] = volume.Array{Shape: []int{9, 3}, Data: make([]float32, 27)}
	for _, c := range []struct {
		tensors map[string]volume.Array
		words   []string
		want    string
	}{
		{without, nil, "codebook.embeddings is missing; a model with quantizer: fsq has none, but levels: give them, as in model.levels='[8, 5, 5, 5]'"},
		{without, []string{"model.levels=[8, 5]"}, "model.embedding: 3, but levels are [8 5]: there are 2"},
		{theirs(t), []string{"model.quantizer=residual"}, `model.quantizer: "residual" (given), but the tensors have one codebook`},
		{theirs(t), []string{"model.quantizer=cosine"}, "codebook.embeddings: code 0 has length"},
		{twice, nil, "codebook2.embeddings is [9 3] (want [10 3])"},
	} {
		_, _, err := imported(t, stateFile(t, c.tensors, nil), ImportOptions{Words: append([]string{"model.groups=2", "model.downsample=[4,2,1]"}, c.words...)})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v\nwant %s", c.words, err, c.want)
		}
	}
}
