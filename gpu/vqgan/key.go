package vqgan

// key names a source of randomness by what it is for: FNV-1a over seed and name, then splitmix64's mixer, because FNV's low bits are
// weak for short input.
func key(seed uint64, name string) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := range 8 {
		h = (h ^ seed>>(8*i)&0xff) * 0x100000001b3
	}
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 0x100000001b3
	}
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
