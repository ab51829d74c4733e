// Package flows turns a YAML file into a running graph. It is where everything meets: the table of stages, the check
// that neighbours fit, the wiring on stages/pipe, and what the stages demand of one another.
//
// Reading order: table.go (the stages), job.go (from file to Job), run.go (one run from lock to outcome), graph.go (the
// wiring), data.go (which scans, in which order), replay.go (resuming in mid-epoch), validate.go and whole.go; adopt.go
// (what a trained model's checkpoint decides), infer.go, codes.go and measure.go (the way back); watch.go
// (what looks on), page.go and charts.go (the report), serve.go (the live page), tell.go (hooks, stalls), pause.go (disks and memory that are full), events.go;
// plan.go, demo.go, phantoms.go and inspect.go are the verbs beside the run.
package flows
