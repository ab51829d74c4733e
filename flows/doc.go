// Package flows turns a YAML file into a running graph. It is where everything meets: the table of stages, the check
// that neighbours fit, the wiring on stages/pipe, and what the stages demand of one another. A [Job] is a file that was
// found to be a graph; a run is a Job that is being run; what both are told to do is spread over files by subject.
//
// Reading order, data's way in: table.go (the stages), options.go and job.go (from file to Job), data.go (which scans, in which
// order), engine.go and memory.go (on what, in how much), run.go (one run from lock to outcome), graph.go (the wiring), quarantine.go (scans
// that are bad).
//
// Training: model.go, resume.go (which checkpoint a run goes on from), agree.go (a checkpoint and a file that go together), replay.go
// (resuming in mid-epoch), hours.go (which step is the last), guard.go (going back), perceptual.go, validate.go and whole.go,
// picture.go and samples.go.
//
// The way back: adopt.go (what a checkpoint decides), infer.go, stream.go (scans that are read as they are needed), output.go (what their way
// out takes), codes.go and measure.go.
//
// Looking on: report.go (what a step says), watch.go, page.go, sentence.go and charts.go (the report), serve.go (the live page), tell.go
// (hooks, stalls), pause.go (disks and memory that are full), events.go.
//
// Over a queue: queue.go (which ends of it a file has), queuerun.go (opened), queuewire.go (wired), queuelist.go (what is published),
// queueverbs.go.
//
// Verbs beside the run: plan.go and pace.go; bench.go, benchrun.go, benchceiling.go and benchfigures.go; import.go and guess.go, export.go;
// inspect.go, devices.go, phantoms.go, demo.go, version.go. errors.go has the exit codes.
package flows
