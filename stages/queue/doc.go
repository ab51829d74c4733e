// Package queue puts an edge of the graph on NATS JetStream: scans wait there for workers, patches for the trainer, so that
// reading and cutting run on other machines.
//
// # What is promised
//
// A message is acknowledged when what was made of it is safe: a scan's when all its patches are stored, a patch's when the
// checkpoint that it was trained into is durable. Delivery is at least once; what comes again is told by its identity
// <run>/<epoch>/<scan>/<tile> and the [Ledger] that every checkpoint holds. So each patch is trained exactly once an epoch
// into the checkpoints that survive, whatever is killed. An epoch ends when every scan's tiles are in the ledger, not
// at a marker: nothing is promised about order.
//
// A slow trainer stops the workers and they the publishers: streams refuse what is beyond their bounds, and publishers
// wait. What can't be used goes to a stream of dead letters, with its reason.
//
// # Reading order
//
// options.go and stage.go (the keys of the block queue and of the stages), names.go (subjects, streams, identities), server.go and
// revive.go (the embedded server), connect.go and auth.go (a connection, its credentials, its end), streams.go (streams and
// consumers, and the check that the server keeps what it was asked for); then a scan's way: scan.go, objects.go and digests.go (its
// bytes), publish.go and published.go (what there is no need to publish again), receive.go (deliveries, what is held, acks),
// worker.go; a patch's: patch.go, ledger.go, voids.go, trainer.go; and what people see: dead.go, sweep.go, presence.go, status.go.
package queue
