package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/configs"
	"github.com/flowrun/flowrun/flows"
)

func built() (version, commit string) { return flows.Version() }

// load reads a configuration file with its overrides.
func load(path string, overrides []string) (*flows.Job, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, &flows.ConfigError{Err: err}
	}
	return flows.Load(path, data, overrides)
}

// readFile reads a configuration, no more of it than configs would take.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: no such file%s", path, nearFile(path))
	}
	if err != nil {
		return nil, unwrapPath(err)
	}
	defer func() { _ = f.Close() }() // it was only read
	data, err := io.ReadAll(io.LimitReader(f, 2<<20))
	if err != nil {
		return nil, unwrapPath(err)
	}
	return data, nil
}

// unwrapPath says what failed as path: reason, without the system call's name.
func unwrapPath(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return fmt.Errorf("%s: %w; want a .yaml file", pathErr.Path, pathErr.Err)
	}
	return err
}

// nearFile ends the error about a missing file with the nearest one beside it.
func nearFile(path string) string {
	files, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*.y*ml"))
	if err != nil {
		return ""
	}
	bare := func(file string) string { return strings.TrimSuffix(filepath.Base(file), filepath.Ext(file)) }
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = bare(f)
	}
	if near, ok := configs.Suggest(bare(path), names); ok {
		return "; did you mean " + files[slices.Index(names, near)] + "?"
	}
	return ""
}

func runFile(ctx context.Context, soft <-chan struct{}, path string, overrides []string, ui flows.UI) error {
	job, err := load(path, overrides)
	if err != nil {
		return err
	}
	return job.Run(ctx, soft, ui)
}

func planFile(ctx context.Context, path string, overrides []string, w io.Writer) error {
	job, err := load(path, overrides)
	if err != nil {
		return err
	}
	return job.Plan(ctx, w)
}

func benchFile(ctx context.Context, path string, overrides []string, ui flows.UI, o flows.BenchOptions) error {
	job, err := load(path, overrides)
	if err != nil {
		return err
	}
	return job.Bench(ctx, ui, o)
}

func demo(ctx context.Context, soft <-chan struct{}, dir string, overrides []string, ui flows.UI) error {
	return flows.Demo(ctx, soft, dir, overrides, ui)
}

func phantoms(ctx context.Context, dir string, o flows.PhantomOptions) error {
	return flows.Phantoms(ctx, dir, o)
}

func inspect(w io.Writer, path string) error {
	return flows.Inspect(w, path)
}

func export(ctx context.Context, w io.Writer, from, to string, o flows.ExportOptions) error {
	return flows.Export(ctx, w, from, to, o)
}

func importWeights(ctx context.Context, w io.Writer, from string, o flows.ImportOptions) error {
	return flows.Import(ctx, w, from, o)
}

func publish(ctx context.Context, soft <-chan struct{}, at flows.QueueAt, o flows.PublishOptions, ui flows.UI) error {
	return flows.Publish(ctx, soft, at, o, ui)
}

func queueStatus(ctx context.Context, at flows.QueueAt, ui flows.UI) error {
	return flows.QueueStatus(ctx, at, ui)
}

func queueCreate(ctx context.Context, at flows.QueueAt, ui flows.UI) error {
	return flows.QueueCreate(ctx, at, ui)
}

func queueDelete(ctx context.Context, at flows.QueueAt, ui flows.UI) error {
	return flows.QueueDelete(ctx, at, ui)
}

func deadLetters(ctx context.Context, at flows.QueueAt, o flows.DeadOptions, ui flows.UI) error {
	return flows.DeadLetters(ctx, at, o, ui)
}

// documents are the stages in the order in which data meets them, then the blocks.
func documents() (stages, blocks []flows.StageDoc) {
	return flows.StageDocs(), flows.BlockDocs()
}
