// Package observe says what a run does: to people on a terminal, to machines on a pipe, and to files in the run's
// folder. It changes nothing of the run. Beside cmd and flows it is the only package that logs.
//
// In the run's folder:
//
//	metrics.jsonl  an object per optimiser step and per validation: the record
//	metrics.csv    the same as a table, a column per name, empty where a row has no value
//	events.out.tfevents.…
//	               the same again for TensorBoard, thinned to one step in three seconds, with pictures: package tfevents
//	log.jsonl      what happened, an object per event; older ones in log.jsonl.1 to log.jsonl.3
//	.lock          held while a run is going on there
//
// Log lines carry a field event where a script may care, and what belongs to it under names of its own:
//
//	start               a run is ready
//	resume              it goes on from a checkpoint: checkpoint, step, epoch
//	progress            how far it is: step, total, epoch, eta_seconds and the step's metrics (only on a pipe)
//	validation          a validation's metrics (only on a pipe)
//	checkpoint          a snapshot is durable: path, step, reason
//	quarantine          a scan is set aside: scan, reason
//	written             a volume, or codes, are on the disk: scan, path
//	measured            so are the measures: path
//	incident            training went wrong: step, since, kind
//	paused, resumed     the run waits for room, or memory, and goes on
//	disk, memory        there is little left: free
//	stalled, moving     nothing moves: stage; something does again
//	serving             the live page: url
//	queue, void         what becomes of the queue; what an epoch ends without
//	stop, done, failed  the run is asked to end, ended, ended with an error: exit, and of a panic the stack
//
// Others (copies, device, late, left behind, left out, unsealed) are warnings in words.
//
// Reading order: record.go (the names of the metrics), metrics.go and flat.go (their files), history.go (their curves in little
// memory), log.go and rotate.go, incidents.go (what is notable in the log), progress.go (live line and JSON lines), line.go
// (how the live line looks), bound.go (what bounds a run), divergence.go (incidents.jsonl), memory.go, resources.go, lock.go; what
// asks from outside, or is told: serve.go, prometheus.go, hooks.go, stall.go, systemd.go, scalars.go and tfevents (TensorBoard);
// options.go (the keys).
package observe
