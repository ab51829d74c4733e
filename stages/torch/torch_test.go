package torch

import (
	"archive/zip"
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFileOfPyTorch(t *testing.T) {
	f, err := Open("testdata/small.pth")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	want := map[string][]float32{ // what testdata/small.py makes
		"epoch_weights.bf16":    {1, -2.5},
		"state_dict.empty":      {},
		"state_dict.flipped":    {0, 3, 1, 4, 2, 5},
		"state_dict.half":       {0.5, -0.25},
		"state_dict.long":       {7, -9},
		"state_dict.parameter":  {1.5},
		"state_dict.scalar":     {3},
		"state_dict.tail":       {4, 5},
		"state_dict.tall":       {0, 1, 2, 3, 4, 5},
		"state_dict.wide.inner": {0.125, 8},
	}
	var names []string
	for _, x := range f.Tensors {
		names = append(names, x.Name)
		got, err := f.Arrays([]Tensor{x})
		if err != nil || !slices.Equal(got[0].Data, want[x.Name]) {
			t.Errorf("%s %v is %v, %v (want %v)", x.Name, x.Shape, got, err, want[x.Name])
		}
	}
	all, err := f.Arrays(f.Tensors)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if !slices.Equal(a.Data, want[a.Name]) {
			t.Errorf("among all %s is %v (want %v)", a.Name, a.Data, want[a.Name])
		}
	}
	if len(names) != len(want) {
		t.Errorf("it holds %v", names)
	}
	if i := slices.Index(names, "state_dict.flipped"); !slices.Equal(f.Tensors[i].Shape, []int{3, 2}) {
		t.Errorf("flipped is %v (want [3 2])", f.Tensors[i].Shape)
	}
}

func TestRefused(t *testing.T) {
	whole := mustRead(t, "testdata/small.pth")
	path := filepath.Join(t.TempDir(), "a.pth")
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"legacy": {[]byte("\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."), "written before PyTorch 1.6"},
		"cut":    {whole[:len(whole)/2], "not a zip file"},
		"other":  {archive(t, "a/b", "x"), "no data.pkl"},
		"script": {archive(t, "a/data.pkl", "\x80\x02}.", "a/constants.pkl", ""), "TorchScript"},
		"big":    {archive(t, "a/data.pkl", "\x80\x02}.", "a/byteorder", "big"), "byte order"},
		"two":    {archive(t, "a/data.pkl", "\x80\x02}.", "b/data.pkl", ""), "both"},
		"list":   {archive(t, "a/data.pkl", "\x80\x02]."), "isn't a dict"},
		"code":   {archive(t, "a/data.pkl", "\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."), "isn't a dict"},
		"outside": {archive(t, "a/data.pkl", "\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"+
			"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x01K\x04\x85K\x01\x85tRs."), "at 1 in a storage of 4"},
		"absent": {archive(t, "a/data.pkl", "\x80\x02h\x05."), "memo 5"},
		"end":    {archive(t, "a/data.pkl", "\x80\x02X\xff\xff\xff\xff"), "EOF"},
	} {
		if err := os.WriteFile(path, c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := Open(path)
		if err == nil {
			_ = f.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), path+": ") {
			t.Errorf("%s: %v (want %s)", name, err, c.want)
		}
	}
}

// listed is what list makes of an archive.
func listed(t *testing.T, data []byte) (*File, error) {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return list(z, int64(len(data)))
}

// A damaged tensor is found by the archive's checksum.
func TestDamagedTensor(t *testing.T) {
	whole := mustRead(t, "testdata/small.pth")
	at := bytes.Index(whole, []byte{0, 0, 0, 0, 0, 0, 0x80, 0x3f, 0, 0, 0, 0x40}) // 0, 1, 2
	if at < 0 {
		t.Fatal("no 0, 1, 2 in the fixture")
	}
	whole[at+2] ^= 1
	f, err := listed(t, whole)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range f.Tensors {
		if _, err := f.Arrays([]Tensor{x}); x.Name == "state_dict.tall" && err == nil {
			t.Error("not noticed")
		}
	}
}

func FuzzPickle(f *testing.F) {
	f.Add([]byte("\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage" +
		"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00K\x04\x85K\x01\x85tRs."))
	f.Add([]byte("\x80\x02ccollections\nOrderedDict\n]\x85Rq\x00h\x00b."))
	f.Add([]byte("\x80\x02}(X\x01\x00\x00\x00hcargparse\nNamespace\n)\x81}X\x01\x00\x00\x00aK\x01sbX\x01\x00\x00\x00ccomegaconf.listconfig\nListConfig\n" +
		")\x81}X\x08\x00\x00\x00_content](comegaconf.nodes\nAnyNode\n)\x81}X\x04\x00\x00\x00_valK\x02sbesbu."))
	f.Fuzz(func(t *testing.T, pickle []byte) {
		data := archive(t, "a/data.pkl", string(pickle), "a/data/0", strings.Repeat("\x00\x00\x80\x3f", 4))
		file, err := listed(t, data)
		if err != nil {
			return
		}
		for key, v := range file.Values {
			if l, ok := v.([]any); ok && len(l) > maxList || !ok && !scalar(v) {
				t.Errorf("%s is %v", key, v)
			}
		}
		for _, x := range file.Tensors {
			if a, err := file.Arrays([]Tensor{x}); err == nil && len(a[0].Data) != x.view.len() {
				t.Errorf("%v has %d elements", x, len(a[0].Data))
			}
		}
	})
}

// archive is a zip of names and contents in turn, not compressed.
func archive(t testing.TB, parts ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := 0; i < len(parts); i += 2 {
		w, err := z.CreateHeader(&zip.FileHeader{Name: parts[i], Method: zip.Store})
		if err == nil {
			_, err = w.Write([]byte(parts[i+1]))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
