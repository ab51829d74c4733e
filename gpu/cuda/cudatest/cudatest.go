// Package cudatest builds the stand-in for the NVIDIA driver, for tests on machines without a GPU.
package cudatest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// StandIn gives the library that takes the driver's place: it is built with g++, unless it was before, from standin/ and kernels/ in
// cuda, the path to the folder gpu/cuda. It stays in the user's folder for caches.
func StandIn(cuda string) (library string, err error) {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return "", errors.New("it is for linux on amd64")
	}
	hash := sha256.New()
	var sources []string
	for _, pattern := range []string{"kernels/*.cu", "kernels/*.h", "standin/*", "include/*"} {
		files, err := filepath.Glob(filepath.Join(cuda, pattern))
		if err != nil {
			return "", err
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				return "", err
			}
			hash.Write(text)
			if filepath.Ext(f) == ".cc" {
				sources = append(sources, filepath.Join("standin", filepath.Base(f)))
			}
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "flowrun")
	library = filepath.Join(dir, fmt.Sprintf("standin-%.8x.so", hash.Sum(nil)))
	if _, err := os.Stat(library); err == nil {
		return library, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	made := fmt.Sprintf("%s.%d", library, os.Getpid())
	build := exec.Command("g++", "-Istandin", "-std=c++17", "-O3", "-fno-strict-aliasing", "-shared", "-fPIC", "-o", made)
	build.Args = append(append(build.Args, sources...), "-ldl")
	build.Dir = cuda
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return library, os.Rename(made, library)
}
