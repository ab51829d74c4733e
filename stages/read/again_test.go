package read

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// faulty is a disk on which each file's reading fails at a byte, so many times.
type faulty struct {
	at    int64
	err   error
	times int

	mu    sync.Mutex
	fails int
}

func (f *faulty) through(r io.Reader) io.Reader { return &faultyFile{f, r, 0} }

type faultyFile struct {
	*faulty
	r io.Reader
	n int64
}

func (f *faultyFile) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n+int64(len(p)) > f.at && f.fails < f.times {
		if p = p[:max(f.at-f.n, 0)]; len(p) == 0 {
			f.fails++
			return 0, f.err
		}
	}
	n, err := f.r.Read(p)
	f.n += int64(n)
	return n, err
}

// Whatever byte a reading fails at for a moment, the scan is listed, loaded and streamed as ever, with a warning; what goes on
// failing, or fails for good, is the scan's fault.
func TestReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.nii")
	put(t, path, [3]int{40, 30, 60}, lps, func(i, j, k int) int16 { return int16(i+20*j+k) - 1000 })
	o := defaults(path)
	for _, spacing := range [][3]float64{{}, {2, 2, 2}} {
		o.Spacing = spacing
		scan := one(t, path, o)
		_, want := loaded(t, path, o)
		read := map[string]func(t *testing.T, o Options) ([]float64, []string, error){
			"list": func(t *testing.T, o Options) ([]float64, []string, error) {
				scans, bad, err := List(t.Context(), o)
				if err == nil && (len(bad) > 0 || *scans[0] != *scan) {
					t.Errorf("%+v, bad %v", scans[0], bad)
				}
				return want, []string{"read again"}, err
			},
			"load": func(t *testing.T, o Options) ([]float64, []string, error) {
				v, err := Load(t.Context(), scan, 0, o, nil)
				if err != nil {
					return nil, nil, err
				}
				defer v.Release()
				return hu(t, v), v.Warnings, nil
			},
			"stream": func(t *testing.T, o Options) (out []float64, odd []string, err error) {
				v, err := Stream(t.Context(), scan, 0, o, 3, Tell{Odd: func(w []string) { odd = append(odd, w...) }}, nil)
				if err != nil {
					return nil, nil, err
				}
				defer v.Release()
				for z := range v.Dims[2] {
					rows, err := v.Rows(z, 0, v.Dims[1], make([]int16, v.Dims[0]*v.Dims[1]))
					if err != nil && !errors.Is(v.Lost(), err) {
						t.Errorf("lost for %v, not %v", v.Lost(), err)
					}
					if err != nil {
						return nil, nil, err
					}
					for _, s := range rows {
						out = append(out, v.Slope*float64(s)+v.Inter)
					}
				}
				return out, odd, nil
			},
		}
		for how, read := range read {
			for _, c := range []struct {
				at    int64
				err   error
				times int
				took  time.Duration
				fails bool
			}{
				{0, syscall.EIO, 1, time.Second, false},
				{0, syscall.EMFILE, 1, time.Second, false},
				{400, syscall.ESTALE, 2, 5 * time.Second, false}, // all of a header is read at once
				{70_000, syscall.ETIMEDOUT, 2, 5 * time.Second, false},
				{144_351, syscall.EIO, 1, time.Second, false}, // the last byte
				{100_000, syscall.EIO, 3, 5 * time.Second, true},
				{100_000, syscall.EPERM, 1, 0, true},
				{0, syscall.EIO, 3, 5 * time.Second, true},
			} {
				if how == "list" && c.at > 0 {
					continue
				}
				synctest.Test(t, func(t *testing.T) {
					o := o
					o.through = (&faulty{at: c.at, err: c.err, times: c.times}).through
					began := time.Now()
					got, odd, err := read(t, o)
					switch {
					case c.fails:
						if !errors.Is(err, c.err) && (how != "list" || !strings.Contains(err.Error(), c.err.Error())) {
							t.Errorf("%s %+v: %v", how, c, err)
						}
					case err != nil || !slices.Equal(got, want):
						t.Errorf("%s %+v: %d voxels, %v", how, c, len(got), err)
					case !strings.Contains(strings.Join(odd, "\n"), "read again"):
						t.Errorf("%s %+v: warned of %q", how, c, odd)
					}
					if took := time.Since(began); took != c.took {
						t.Errorf("%s %+v took %v", how, c, took)
					}
				})
			}
		}
	}
}

// Where a run ends while it waits for another try, the scan isn't at fault.
func TestReadAgainIsNotWaitedForAtTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.nii")
	put(t, path, [3]int{40, 30, 60}, identity, func(i, j, k int) int16 { return -1000 })
	o := defaults(path)
	scan := one(t, path, o)
	for _, at := range []int64{0, 40_000} {
		synctest.Test(t, func(t *testing.T) {
			o := o
			o.through = (&faulty{at: at, err: syscall.EIO, times: 9}).through
			brief := func() context.Context {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				t.Cleanup(cancel)
				return ctx
			}
			_, _, listing := List(brief(), o)
			_, loading := Load(brief(), scan, 0, o, nil)
			v, err := Stream(brief(), scan, 0, o, 3, Tell{}, nil)
			if err == nil {
				_, err = v.Rows(59, 0, 1, make([]int16, 40))
				v.Release()
			}
			for _, err := range []error{listing, loading, err} {
				if !errors.Is(err, context.DeadlineExceeded) && (err != nil || at == 0) {
					t.Errorf("at %d: %v", at, err)
				}
			}
			// Nor is it waited for by who lets the volume go.
			o.through = (&faulty{at: max(at, 400), err: syscall.EIO, times: 9}).through
			v, err = Stream(t.Context(), scan, 0, o, 3, Tell{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			began := time.Now()
			v.Release()
			if took := time.Since(began); took != 0 {
				t.Errorf("released after %v", took)
			}
		})
	}
}
