package vqgan

// EncoderField is how far a latent sees, per axis x, y, z: voxels in front of the first and behind the last of the voxels that it stands for.
// With norm: group it sees the whole patch instead.
func (c *Config) EncoderField() [3][2]int {
	var out [3][2]int
	for a, f := range c.Downsample {
		low, high := 0, 0
		for i := c.Halvings() - 1; i >= 0; i-- {
			low, high = low-2, high+2 // res: two k3
			if c.stride(i)[2-a] == 2 {
				low, high = 2*low-1, 2*high+2
			} else {
				low, high = low-2, high+1
			}
		}
		low, high = low-1, high+1 // conv_first
		out[a] = [2]int{-low, high - (f - 1)}
	}
	return out
}

// DecoderField is how far the voxels of a latent see, per axis x, y, z: latents in front of it and behind it.
func (c *Config) DecoderField() [3][2]int {
	var out [3][2]int
	for a, f := range c.Downsample {
		low, high := -1, f // conv_last
		for i := c.Halvings() - 1; i >= 0; i-- {
			low, high = low-4, high+4 // res1, res2
			if c.stride(i)[2-a] == 2 {
				low, high = (low-1)>>1, (high+1)>>1
			} else {
				low, high = low-2, high+1
			}
		}
		out[a] = [2]int{-low, high}
	}
	return out
}
