//go:build !linux || !amd64

package integration

import (
	"errors"
	"io"
	"time"
)

type clock struct{ mem io.Closer }

func (c *clock) jump(time.Duration) error { return errors.ErrUnsupported }

func (p *place) startWarped(args ...string) (*process, *clock, error) {
	return p.start(args...), nil, errors.ErrUnsupported
}

func warp(int) (*clock, error) { return nil, errors.ErrUnsupported }
