package integration

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/volume"
)

// back is a flow that gives scans back whole.
const back = `flow:
  - read:    {scans: [scans]}
  - tile:    {patch: [16, 16, 8], stride: [12, 12, 8]}
  - batch:   {size: 2}
  - infer:   {checkpoint: identity}
  - merge:   {mode: blend}
  - measure: {pictures: 0}
  - write:   {dir: out}
`

// models are the checkpoints that tests share, of a few steps each: channel.safetensors and group.safetensors by the norm, and
// spacing.safetensors, which was trained on resampled scans.
var models = sync.OnceValues(func() (string, error) {
	scans, err := phantoms()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(built, "models")
	if err := os.Mkdir(dir, 0o777); err != nil {
		return "", err
	}
	text := strings.ReplaceAll(tiny, "[scans]", "["+scans+"]")
	if err := os.WriteFile(filepath.Join(dir, "train.yaml"), []byte(text), 0o666); err != nil {
		return "", err
	}
	for name, words := range map[string]string{"channel": "", "group": "model.norm=group", "spacing": "read.spacing=[9,11,15]"} {
		c := exec.Command(flowrun(), append(strings.Fields("train.yaml train.max_steps=6 train.validate.scans=[] run.dir="+name), strings.Fields(words)...)...)
		c.Dir = dir
		if out, err := c.CombinedOutput(); err != nil {
			return "", fmt.Errorf("the %s model: %w: %s", name, err, out)
		}
		if err := os.Rename(filepath.Join(dir, name, "checkpoints/step-00000006.safetensors"), filepath.Join(dir, name+".safetensors")); err != nil {
			return "", err
		}
	}
	return dir, nil
})

// newBack is a place with back.yaml and the models in models/.
func newBack(t *testing.T) *place {
	t.Helper()
	p := newPlace(t)
	dir, err := models()
	p.check(err)
	p.check(os.Symlink(dir, p.path("models")))
	p.write("back.yaml", back)
	return p
}

// picture is a NIfTI file: intensities in the file's order.
type picture struct {
	header *nifti.Header
	affine volume.Affine
	voxels []float64
}

func (p *place) picture(name ...string) picture {
	p.Helper()
	r, err := nifti.Open(p.path(name...), nifti.Limits{})
	p.check(err)
	defer func() { _ = r.Close() }()
	h := r.Header
	a, _ := h.Affine()
	raw := make([]byte, h.Bytes())
	if n, err := r.Read(raw); err != nil || n != len(raw) {
		p.Fatalf("%s: %d of %d bytes: %v", filepath.Join(name...), n, len(raw), err)
	}
	_, err = r.Finish()
	p.check(err)
	voxels := make([]float64, len(raw)/h.Datatype.Size())
	h.Float64(voxels, raw)
	if h.SclSlope != 0 {
		for i, x := range voxels {
			voxels[i] = h.SclSlope*x + h.SclInter
		}
	}
	return picture{h, a, voxels}
}

// sameGrid checks that two files have one size and place.
func (p *place) sameGrid(name string, a, b picture) {
	p.Helper()
	if a.header.Dim != b.header.Dim || a.affine != b.affine || len(a.voxels) != len(b.voxels) {
		p.Fatalf("%s: %v at %v, the scan: %v at %v", name, b.header.Dim, b.affine, a.header.Dim, a.affine)
	}
}

// kind is how a scan is stored.
type kind struct {
	dtype        nifti.Type
	order        binary.ByteOrder
	version      int
	slope, inter float64
	low, high    float64 // of what is stored
	fraction     float64 // of a float32, how far from whole numbers it goes
}

var (
	little, big binary.ByteOrder = binary.LittleEndian, binary.BigEndian

	kinds = []kind{
		{nifti.Int16, little, 1, 1, 0, -1500, 3500, 0},
		{nifti.Int16, big, 1, 0, 0, -1500, 3500, 0},
		{nifti.Int16, little, 2, 0.5, -1000, -1000, 3000, 0},
		{nifti.Uint8, little, 1, 10, -1100, 0, 255, 0},
		{nifti.Uint16, big, 2, 1, -1024, 0, 4095, 0},
		{nifti.Float32, little, 1, 0, 0, -1500, 3500, 0.4},
		{nifti.Float32, big, 2, 2, -1024, 0, 2000, 0.2},
		{nifti.Float64, big, 1, 0, 0, -1500, 3500, 0.4},
		{nifti.Int32, little, 1, 1, 0, -1500, 3500, 0},
	}
)

// scan stores random voxels.
func (p *place) scan(name string, k kind, dims [3]int, a volume.Affine, r *rand.Rand) {
	p.Helper()
	h := nifti.New(k.dtype, dims, a)
	h.Order, h.Version, h.SclSlope, h.SclInter = k.order, k.version, k.slope, k.inter
	b, err := h.Encode()
	p.check(err)
	for range dims[0] * dims[1] * dims[2] {
		x := math.Round(k.low + (k.high-k.low)*r.Float64())
		f := x + k.fraction*(2*r.Float64()-1)
		var v any = f
		switch k.dtype {
		case nifti.Uint8:
			v = uint8(x)
		case nifti.Int16:
			v = int16(x)
		case nifti.Uint16:
			v = uint16(x)
		case nifti.Int32:
			v = int32(x)
		case nifti.Float32:
			v = float32(f)
		}
		b, err = binary.Append(b, k.order, v)
		p.check(err)
	}
	if strings.HasSuffix(name, ".gz") {
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		_, err := w.Write(b)
		p.check(err)
		p.check(w.Close())
		b = z.Bytes()
	}
	p.write(filepath.Join("scans", name), string(b))
}

// turned is an affine whose axes are the world's in some order, some of them reversed, with voxels of unequal size.
func turned(r *rand.Rand) (a volume.Affine) {
	for f, w := range r.Perm(3) {
		a[w][f] = []float64{0.5, 0.75, 2.5}[f]
		if r.IntN(2) == 0 {
			a[w][f] *= -1
		}
	}
	for w := range 3 {
		a[w][3] = float64(r.IntN(400) - 200)
	}
	return a
}

// An identity model gives every scan back: clipped to the window and rounded, voxel for voxel, in the file's own order.
func TestIdentity(t *testing.T) {
	t.Parallel()
	p := newBack(t)
	p.check(os.RemoveAll(p.path("scans")))
	p.check(os.MkdirAll(p.path("scans", "ward", "a"), 0o777))
	r := rand.New(rand.NewPCG(5, 8))
	sizes := [][3]int{{1, 1, 1}, {33, 17, 9}, {5, 3, 2}, {16, 16, 8}, {7, 40, 21}, {64, 10, 3}, {23, 22, 24}, {1, 30, 14}, {20, 26, 1}, {17, 18, 40}}
	oblique := volume.Affine{{0.6, 0.1, -0.2, 10}, {-0.1, 0.7, 0.3, -20}, {0.05, -0.12, 2.2, 30}}
	var names []string
	for i := range 22 {
		name := fmt.Sprintf("%s%02d.nii%s", []string{"", "ward/", "ward/a/"}[i%3], i, []string{"", ".gz"}[i%2])
		a := turned(r)
		if i%7 == 6 {
			a = oblique
		}
		p.scan(name, kinds[i%len(kinds)], sizes[i%len(sizes)], a, r)
		names = append(names, name)
	}
	for i, c := range []struct {
		window, words string
		low, high     float64
	}{
		{"hann", "batch.size=1", -1000, 1000},
		{"gaussian", "batch.size=2 tile.patch=[24,8,8] tile.stride=[9,8,5]", -1024, 3071},
		{"linear", "batch.size=3 tile.patch=[8,32,16] tile.stride=[5,20,16] write.gz=false", -160, 240},
		{"crop", "tile.patch=[11,13,7] tile.stride=[4,13,6] read.ahead=5", -1000, 400},
		{"constant", "tile.patch=[64,64,64] tile.stride=[0,0,0] read.cache=cache", -1350.5, 149.75},
		{"hann", "tile.patch=[64,64,64] tile.stride=[0,0,0] read.cache=cache", -1350.5, 149.75}, // from the cache
		{"hann", "merge.mode=exact", -1000, 1000},
	} {
		dir := fmt.Sprint("out", i)
		words := append(strings.Fields(c.words), fmt.Sprintf("read.window_hu=[%v,%v]", c.low, c.high), "merge.window="+c.window, "write.dir="+dir)
		p.must(append([]string{"back.yaml"}, words...)...)
		ending := ".nii.gz"
		if strings.Contains(c.words, "gz=false") {
			ending = ".nii"
		}
		for i, name := range names {
			exact := strings.Contains(c.words, "exact")
			if k := kinds[i%len(kinds)]; exact && (k.fraction > 0 || k.slope == 0.5) {
				continue // codes stand for steps of the window: only whole HU are sure to come back
			}
			stem, _, _ := strings.Cut(name, ".")
			in, out := p.picture("scans", name), p.picture(dir, stem+"_recon"+ending)
			p.sameGrid(name, in, out)
			if h := out.header; h.Datatype != nifti.Int16 || h.SclSlope != 1 || h.SclInter != 0 {
				t.Fatalf("%s: written as %v, slope %v, inter %v", name, h.Datatype, h.SclSlope, h.SclInter)
			}
			for v, x := range in.voxels {
				if want := math.Floor(min(max(x, c.low), c.high) + 0.5); out.voxels[v] != want {
					t.Fatalf("%s %s: %s: voxel %d is %v, was %v (want %v)", c.window, c.words, name, v, out.voxels[v], x, want)
				}
			}
		}
	}
	// What was resolved is a file that does the same.
	p.must("out1/config.yaml", "write.dir=again", "run.dir=again")
	p.sameFiles("out1", "again")
}

// sameFiles checks that two folders hold the same volumes, to the byte, and counts them.
func (p *place) sameFiles(a, b string) int {
	p.Helper()
	count := func(dir string) (names []string) {
		p.check(filepath.WalkDir(p.path(dir), func(path string, d os.DirEntry, err error) error {
			if strings.Contains(d.Name(), ".nii") {
				names = append(names, strings.TrimPrefix(path, p.path(dir)))
			}
			return err
		}))
		return names
	}
	names := count(a)
	if others := count(b); len(names) == 0 || !slices.Equal(names, others) {
		p.Fatalf("%s: %v, %s: %v", a, names, b, others)
	}
	for _, name := range names {
		if p.text(a, name) != p.text(b, name) {
			p.Errorf("%s differs in %s and %s", name, a, b)
		}
	}
	return len(names)
}

// odd adds scans of odd sizes to the phantoms, one of them smaller than a cell of two voxels.
func (p *place) odd() {
	p.Helper()
	r := rand.New(rand.NewPCG(2, 3))
	p.scan("odd.nii", kinds[0], [3]int{15, 37, 11}, turned(r), r)
	p.scan("flat.nii.gz", kinds[1], [3]int{21, 1, 19}, turned(r), r)
	p.scan("point.nii", kinds[2], [3]int{1, 1, 1}, turned(r), r)
}

// plainly writes float32 without compression, so that any bit that differs shows.
var plainly = []string{"write.dtype=float32", "write.gz=false"}

// A blend has the same bits for any number of patches at a time and any number of workers.
func TestBlendHasTheSameBits(t *testing.T) {
	t.Parallel()
	p := newBack(t)
	p.odd()
	for _, model := range []string{"channel", "group"} {
		words := append([]string{"back.yaml", "infer.checkpoint=models/" + model + ".safetensors"}, plainly...)
		p.must(append(words, "write.dir="+model, "batch.size=1", "run.workers=1")...)
		p.must(append(words, "write.dir="+model+"3", "batch.size=3", "run.workers=3", "read.ahead=6")...)
		if n := p.sameFiles(model, model+"3"); n != 10 {
			t.Errorf("%d volumes of 10 scans", n)
		}
		p.must(append(words, "write.dir="+model+"-raw", "infer.weights=raw")...)
		if p.text(model, "odd_recon.nii") == p.text(model+"-raw", "odd_recon.nii") {
			t.Errorf("%s: EMA and raw weights give the same", model)
		}
	}
	for _, e := range p.events("channel", "written") {
		if _, err := os.Stat(p.path(e["path"].(string))); err != nil {
			t.Error(err)
		}
	}
}

// In exact tiling nothing depends on the tiles.
func TestExactHasTheSameBits(t *testing.T) {
	t.Parallel()
	p := newBack(t)
	p.odd()
	words := append([]string{"back.yaml", "infer.checkpoint=models/channel.safetensors", "merge.mode=exact", "tile.stride=[0,0,0]"}, plainly...)
	p.must(append(words, "write.dir=whole", "tile.patch=[64,64,64]", "run.workers=1")...)
	for _, patch := range []string{"[14,14,14]", "[16,26,18]", "[40,14,20]"} {
		dir := "exact" + patch
		p.must(append(words, "tile.patch="+patch, "write.dir="+dir, "run.workers=2", "batch.size=3")...)
		if n := p.sameFiles("whole", dir); n != 10 {
			t.Errorf("%d volumes of 10 scans", n)
		}
	}
	// The patch of the training is enlarged where it is left open.
	p.write("open.yaml", strings.Replace(back, "{patch: [16, 16, 8], stride: [12, 12, 8]}", "", 1))
	p.must(append([]string{"open.yaml", "write.dir=open"}, append(slices.Delete(slices.Clone(words[1:]), 2, 3), "run.workers=2")...)...)
	p.sameFiles("whole", "open")
	p.write("mixed.yaml", strings.Replace(back, "  - batch:", "  - shuffle: {volumes: 3}\n  - batch:", 1))
	p.must(append([]string{"mixed.yaml", "write.dir=mixed", "tile.patch=[20,20,20]"}, words[1:]...)...)
	p.sameFiles("whole", "mixed")
	// A tile that is the volume is blended with nothing.
	one := append([]string{"back.yaml", "infer.checkpoint=models/channel.safetensors", "read.scans=scans/phantom-0001.nii.gz", "tile.patch=[32,24,16]"}, plainly...)
	p.must(append(one, "write.dir=one", "tile.stride=[32,24,16]")...)
	if p.text("one", "phantom-0001_recon.nii") != p.text("whole", "phantom-0001_recon.nii") {
		t.Error("one tile of the volume's size gives something else")
	}
}

// A model that was trained on resampled scans gives volumes on the scans' own grids.
func TestResampledScansComeBackOnTheirGrid(t *testing.T) {
	t.Parallel()
	p := newBack(t)
	r := rand.New(rand.NewPCG(2, 9))
	a := turned(r)
	for w := range 3 {
		for f := range 3 {
			a[w][f] *= 12
		}
	}
	p.scan("turned.nii", kinds[0], [3]int{15, 17, 9}, a, r)
	p.must("back.yaml", "infer.checkpoint=models/spacing.safetensors")
	if text := p.text("out", "config.yaml"); !strings.Contains(text, "spacing: [9, 11, 15]") {
		t.Errorf("the checkpoint's spacing isn't taken over:\n%s", text)
	}
	for name := range p.recons("out") {
		p.sameGrid(name, p.picture("scans", name), p.picture("out", stem(name)+"_recon.nii.gz"))
	}
	// Through an identity, what is lost is what interpolation loses: little, where cells are smaller than voxels.
	p.must("back.yaml", "read.spacing=[4,5,6]", "write.dir=fine", "read.scans=scans/phantom*")
	for name := range p.recons("fine") {
		in, out := p.picture("scans", name), p.picture("fine", stem(name)+"_recon.nii.gz")
		p.sameGrid(name, in, out)
		sum := 0.0
		for i, x := range in.voxels {
			sum += math.Abs(min(max(x, -1000), 1000) - out.voxels[i])
		}
		if mean := sum / float64(len(in.voxels)); mean > 60 {
			t.Errorf("%s: %v HU on average", name, mean)
		}
	}
}

func stem(name string) string {
	s, _, _ := strings.Cut(name, ".nii")
	return s
}

// recons gives the scans that a run wrote, as its log tells them, and the paths of what it wrote.
func (p *place) recons(dir string) map[string]string {
	p.Helper()
	paths := map[string]string{}
	for _, e := range p.events(dir, "written") {
		paths[e["scan"].(string)] = e["path"].(string)
	}
	if len(paths) == 0 {
		p.Fatalf("%s: nothing was written", dir)
	}
	return paths
}

// sums are what PSNR and mean absolute error are made of.
type sums struct{ square, absolute, voxels float64 }

func (s *sums) add(in, out picture, low, high float64) {
	for i, x := range in.voxels {
		d := min(max(x, low), high) - min(max(out.voxels[i], low), high)
		s.square += d * d
		s.absolute += math.Abs(d)
		s.voxels++
	}
}

func (s *sums) psnr(width float64) float64 { return 10 * math.Log10(width*width*s.voxels/s.square) }

func (s *sums) mae() float64 { return s.absolute / s.voxels }

// The measures are those of the files, whoever computes them.
func TestMeasures(t *testing.T) {
	t.Parallel()
	p := newBack(t)
	type row struct {
		ID   string
		PSNR float64 `json:"psnr"`
		MAE  float64 `json:"mae_hu"`
		Bits float64 `json:"bits_per_voxel"`
	}
	for dir, window := range map[string][2]float64{"wide": {-1000, 1000}, "narrow": {-160, 240}} {
		words := append([]string{"back.yaml", "infer.checkpoint=models/channel.safetensors", "write.dir=" + dir, "measure.pictures=2"}, plainly...)
		o := p.must(append(words, fmt.Sprintf("measure.window_hu=[%v,%v]", window[0], window[1]))...)
		var m struct {
			Window [2]float64 `json:"window_hu"`
			Pooled row
			Mean   row
			Scans  []row
		}
		p.check(json.Unmarshal(p.file(dir, "measures.json"), &m))
		if m.Window != window || len(m.Scans) != 7 {
			t.Fatalf("window %v, %d scans", m.Window, len(m.Scans))
		}
		near := func(what string, got, want float64) {
			t.Helper()
			if !(math.Abs(got-want) <= 1e-5*math.Abs(want)) {
				t.Errorf("%s: %s is %v (want %v)", dir, what, got, want)
			}
		}
		width := window[1] - window[0]
		var all sums
		mean := 0.0
		for _, s := range m.Scans {
			in, out := p.picture("scans", s.ID), p.picture(dir, stem(s.ID)+"_recon.nii")
			var one sums
			one.add(in, out, window[0], window[1])
			all.add(in, out, window[0], window[1])
			mean += one.psnr(width) / 7
			near(s.ID+" PSNR", s.PSNR, one.psnr(width))
			near(s.ID+" MAE", s.MAE, one.mae())
			if !(s.Bits > 0.5 && s.Bits < 4) { // 4 bits for 8 voxels, and overlaps
				t.Errorf("%s: %v bits a voxel", s.ID, s.Bits)
			}
			if !strings.Contains(o.stdout, s.ID) || !strings.Contains(o.stdout, fmt.Sprintf("%.2f", s.PSNR)) {
				t.Errorf("the table lacks %s or its PSNR %.2f:\n%s", s.ID, s.PSNR, o.stdout)
			}
		}
		near("pooled PSNR", m.Pooled.PSNR, all.psnr(width))
		near("pooled MAE", m.Pooled.MAE, all.mae())
		near("mean PSNR", m.Mean.PSNR, mean)
		if !strings.Contains(o.stdout, fmt.Sprintf("window %v to %v HU", window[0], window[1])) {
			t.Errorf("the table doesn't say its window:\n%s", o.stdout)
		}

		lines, err := csv.NewReader(strings.NewReader(p.text(dir, "measures.csv"))).ReadAll()
		p.check(err)
		if len(lines) != 1+7+2 {
			t.Fatalf("measures.csv has %d lines", len(lines))
		}
		id, psnr := slices.Index(lines[0], "id"), slices.Index(lines[0], "psnr")
		for i, s := range m.Scans {
			if line := lines[1+i]; line[id] != s.ID || line[psnr] != fmt.Sprint(s.PSNR) {
				t.Errorf("measures.csv: %v (want %s with %v)", line, s.ID, s.PSNR)
			}
		}

		files, err := filepath.Glob(p.path(dir, "pictures", "*.png"))
		p.check(err)
		if len(files) != 2*3 {
			t.Errorf("%d pictures of 2 scans", len(files))
		}
		for _, name := range files {
			b, err := os.ReadFile(name)
			p.check(err)
			if img, err := png.Decode(bytes.NewReader(b)); err != nil || img.Bounds().Dx() < 100 {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
