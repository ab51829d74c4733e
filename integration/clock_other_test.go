//go:build !linux || !amd64

package integration

import (
	"errors"
	"time"
)

type clock struct{}

func (c *clock) jump(time.Duration) error { return errors.ErrUnsupported }

func (p *place) startWarped(args ...string) (*process, *clock, error) {
	return p.start(args...), nil, errors.ErrUnsupported
}
