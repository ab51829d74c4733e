package queue

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/flowrun/flowrun/stages/volume"
)

// Patches of 256×256×128 through the embedded server with file storage, both ways at once: two senders, one trainer that
// checks each digest and makes a checkpoint durable every 8 patches, while the next ones come.
func BenchmarkPatches(b *testing.B) {
	size := [3]int{256, 256, 128}
	o := Options{Name: "bench", Scans: 4, Workers: 4, AckWait: 60, URL: os.Getenv("NATS_URL")}
	var s *Embedded
	if !o.External() { // NATS_URL names another, whose memory can then be looked at alone
		var err error
		if s, err = StartServer(Server{Disk: 4 << 30}, filepath.Join(b.TempDir(), "store"), nil); err != nil {
			b.Fatal(err)
		}
		defer s.Stop()
	}
	ctx := b.Context()
	open := func(role string) *Queue {
		q, err := Open(ctx, Config{Options: o, Embedded: s}, role)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(q.Close)
		return q
	}
	tq, wq := open(Trainer), open(Worker)
	if err := tq.Delete(ctx); err != nil {
		b.Fatal(err)
	}
	if err := tq.Ensure(ctx, Bounds{Held: 16, Patch: size}); err != nil {
		b.Fatal(err)
	}
	voids, err := OpenVoids(filepath.Join(b.TempDir(), "void.jsonl"))
	if err != nil {
		b.Fatal(err)
	}
	in, err := tq.Intake(IntakeOptions{Voids: voids, Check: func(*Patch) error { return nil }})
	if err != nil {
		b.Fatal(err)
	}
	defer in.Close()
	samples := make([]int16, size[0]*size[1]*size[2])
	r := rand.New(rand.NewPCG(1, 2))
	for i := range samples {
		samples[i] = int16(r.Uint32())
	}
	b.SetBytes(int64(2 * len(samples)))
	b.ReportAllocs()
	b.ResetTimer()
	var group sync.WaitGroup
	for worker := range 2 {
		group.Go(func() {
			for i := worker; i < b.N; i += 2 {
				p := &Patch{Run: o.Name, Tile: i, Tiles: b.N, Size: size, Window: [2]float64{-1000, 1000}, Slope: 1, Source: ref("a", 0, 1, 1), Samples: samples}
				if err := wq.PublishPatch(ctx, p); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	written := make(chan []volume.Tag) // as the checkpoint stage, beside the training
	group.Go(func() {
		for tags := range written {
			if err := in.Durable(ctx, tags); err != nil {
				b.Error(err)
			}
		}
	})
	var open8 []volume.Tag
	for i := range b.N {
		p, err := in.Next(ctx)
		if err != nil {
			b.Fatal(err)
		}
		if open8 = append(open8, tag(p)); len(open8) == 8 || i == b.N-1 {
			written <- open8
			open8 = nil
		}
	}
	close(written)
	group.Wait()
	b.StopTimer()
}
