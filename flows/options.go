package flows

import "errors"

// RunOptions are the keys of the run block.
type RunOptions struct {
	Dir     string  `key:"dir" default:"runs/train" doc:"Folder that the run writes to. It holds the lock, the checkpoints and all else that the run leaves."`
	Seed    uint64  `key:"seed" default:"1234" doc:"Seed of everything random: weights, order, crops, augmentation."`
	Memory  int64   `key:"memory" default:"0" unit:"bytes" min:"0" doc:"Host memory for scans, batches, validation and, on the CPU, the engine. 0 is three quarters of what the machine (or its container) has."`
	Resume  string  `key:"resume" default:"auto" doc:"auto goes on from the newest checkpoint in dir that verifies; never refuses a dir that holds checkpoints; a file name goes on from that checkpoint."`
	Workers int     `key:"workers" default:"0" unit:"threads" min:"0" max:"1024" doc:"Threads of the CPU engine and of each parallel stage; 0 is one for each core. The result doesn't depend on it."`
	Hours   float64 `key:"hours" default:"0" unit:"hours" min:"0" doc:"Time to fill: the schedule is stretched (or cut) so that the run ends after about so long, whatever train.epochs says. The pace is that of the first steps and of a validation behind them. The time of all that the run was stopped and went on counts, not that between; another run.hours on going on makes another schedule. 0 keeps the epochs."`
}

// Check finds what no single key shows.
func (o *RunOptions) Check() error {
	if o.Dir == "" {
		return errors.New("dir: is empty (want a folder for the run)")
	}
	return nil
}
