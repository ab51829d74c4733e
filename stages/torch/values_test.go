package torch

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestSettings(t *testing.T) {
	for path, want := range map[string]string{
		"testdata/settings.ckpt": "hparams_name=kwargs hyper_parameters.cfg.dataset.image_channels=1 hyper_parameters.cfg.model.downsample=[1 2 4]" +
			" hyper_parameters.cfg.model.lr=0.0003 hyper_parameters.cfg.model.n_hiddens=4 hyper_parameters.cfg.model.no_random_restart=false" +
			" hyper_parameters.cfg.model.norm_type=group",
		"testdata/small.pth": "done=false epoch=3 hyper_parameters.a=1 lr=0.001", // b holds a None
	} {
		f, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, key := range slices.Sorted(maps.Keys(f.Values)) {
			got = append(got, fmt.Sprintf("%s=%v", key, f.Values[key]))
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("%s:\n%s\nwant\n%s", path, text, want)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A dict that holds itself has an end.
func TestSettingsInACircle(t *testing.T) {
	data := archive(t, "a/data.pkl", "\x80\x02}q\x00(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00X\x01\x00\x00\x00cK\x07u.")
	f, err := listed(t, data)
	if err != nil || f.Values["a.b.a.c"] != int64(7) {
		t.Errorf("%v, %v", err, f)
	}
}

// Entries of dicts under a long key don't each keep that key.
func TestLongNames(t *testing.T) {
	long := strings.Repeat("k", 1<<20)
	pickle := "\x80\x02}X\x00\x00\x10\x00" + long + "}(" // 1<<20, the lowest byte first
	for i := range 100 {
		pickle += fmt.Sprintf("X\x02\x00\x00\x00%02dK\x01", i)
	}
	data := archive(t, "a/data.pkl", pickle+"us.")
	if _, err := listed(t, data); err == nil || !strings.Contains(err.Error(), "bytes of their names") {
		t.Errorf("%v", err)
	}
}

// Tensors that share bytes can't make more of a file than it holds.
func TestOverlaps(t *testing.T) {
	const view = "X\x01\x00\x00\x00%sctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n" +
		"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuM\x00\x01tQK\x00M\x00\x01\x85K\x01\x85tR"
	pickle := "\x80\x02}("
	for _, name := range "abcdefgh" {
		pickle += fmt.Sprintf(view, string(name))
	}
	data := archive(t, "a/data.pkl", pickle+"u.", "a/data/0", strings.Repeat("\x00\x00\x80\x3f", 256))
	f, err := listed(t, data)
	if err != nil || len(f.Tensors) != 8 {
		t.Fatal(err, f)
	}
	if _, err := f.Arrays(f.Tensors[:2]); err != nil {
		t.Error(err)
	}
	if _, err := f.Arrays(f.Tensors); err == nil || !strings.Contains(err.Error(), "they overlap") {
		t.Errorf("%v (want that they overlap)", err)
	}
}

// A storage is read as one type.
func TestOneStorageTwoTypes(t *testing.T) {
	const view = "X\x01\x00\x00\x00%sctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n%sStorage\n" +
		"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00K\x04\x85K\x01\x85tR"
	data := archive(t, "a/data.pkl", "\x80\x02}("+fmt.Sprintf(view, "v", "Float")+fmt.Sprintf(view, "w", "Int")+"u.", "a/data/0", strings.Repeat("\x00\x00\x80\x3f", 4))
	f, err := listed(t, data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Arrays(f.Tensors); err == nil || !strings.Contains(err.Error(), "of another type") {
		t.Errorf("%v", err)
	}
}
