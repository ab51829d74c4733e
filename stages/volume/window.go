package volume

import "fmt"

// Windows are this wide at least and reach this far at most, in HU, so that float32 holds a sample's place in any of them.
const (
	leastWindow = 1e-3
	farWindow   = 1e9
)

// CheckWindow says why w, its low and its high end in HU, isn't a window of intensities.
func CheckWindow(w [2]float64) error {
	const isnt = "[%v, %v] isn't a window (want low < high"
	lo, hi := w[0], w[1]
	switch {
	case !(lo < hi):
		return fmt.Errorf(isnt+")", lo, hi)
	case hi-lo < leastWindow*(1-1e-6) || // ends like 1 and 1.001 are a rounding nearer
		lo < -farWindow || hi > farWindow:
		return fmt.Errorf(isnt+", %g HU apart or more, within ±%g)", lo, hi, leastWindow, farWindow)
	}
	return nil
}
