//go:build cuda

package cuda

import (
	"regexp"
	"strconv"
	"testing"
	"unsafe"
)

// The kernels' PTX is that of the oldest driver that Usable lets through, 7.0 came with CUDA 11.0; for Hopper alone 8.0, with CUDA 12.0.
func TestLeastDriver(t *testing.T) {
	all, err := modules()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		want := map[string]string{everyone: "7.0", "sm_90a": "8.0"}[m.target]
		if version := regexp.MustCompile(`(?m)^\.version (.*)$`).FindStringSubmatch(m.text); version == nil || version[1] != want || leastDriver != [2]int{11, 0} {
			t.Errorf("PTX version %v for %s, drivers from CUDA %v on", version, m.target, leastDriver)
		}
	}
	for own, driver := range map[string][2]int{"": {11, 8}, "sm_90a": {12, 0}} {
		if got := (Device{Major: 9, Driver: driver}).own(); got != own {
			t.Errorf("a Hopper card with a driver for %v has kernels for %q, want %q", driver, got, own)
		}
	}
}

// The structs that Go hands to kernels are as large as those that the kernels read.
func TestArguments(t *testing.T) {
	sizes := map[string]uintptr{}
	for _, group := range []struct {
		size    uintptr
		kernels []string
	}{
		{unsafe.Sizeof(convArgs{}), []string{"conv256x128", "conv512x64", "conv512x32", "conv256x128Hopper", "conv384x128Hopper", "conv512x64Hopper", "conv768x64Hopper", "convDirect", "convNarrow1", "convNarrow3"}},
		{unsafe.Sizeof(thinConvArgs{}), []string{"convThin3"}},
		{unsafe.Sizeof(thinWeightArgs{}), []string{"weightThin3", "weightThin4", "weightThin4by2"}},
		{unsafe.Sizeof(packArgs{}), []string{"pack"}},
		{unsafe.Sizeof(weightArgs{}), []string{"weight9x64", "weight9x32", "weight4x64", "weight4x32", "weight1x128", "weight1x32", "weight9x64Hopper", "weight4x128Hopper", "weight4x128", "weightDirect"}},
		{unsafe.Sizeof(gatherWeightsArgs{}), []string{"gatherWeights"}},
		{unsafe.Sizeof(biasArgs{}), []string{"biasSums"}},
		{unsafe.Sizeof(normArgs{}), []string{"channelNorm", "channelNorm8", "channelNormGrad", "channelNormGrad8", "channelGradSums", "groupSums", "groupSums8", "groupGradSums", "groupGradSums8",
			"groupNorm", "groupNorm8", "groupGrad", "groupGrad8"}},
		{unsafe.Sizeof(groupArgs{}), []string{"groupStats", "groupMeans"}},
		{unsafe.Sizeof(columnsArgs{}), []string{"columns"}},
		{unsafe.Sizeof(sumArgs{}), []string{"sumSquares"}},
		{unsafe.Sizeof(totalArgs{}), []string{"total"}},
		{unsafe.Sizeof(adamArgs{}), []string{"adam"}},
		{unsafe.Sizeof(copyArgs{}), []string{"storeTensor", "fetchTensor"}},
		{unsafe.Sizeof(lossArgs{}), []string{"loss"}},
		{unsafe.Sizeof(normsArgs{}), []string{"codeNorms"}},
		{unsafe.Sizeof(nearestArgs{}), []string{"nearest"}},
		{unsafe.Sizeof(countArgs{}), []string{"countCodes"}},
		{unsafe.Sizeof(gatherArgs{}), []string{"gatherCodes"}},
		{unsafe.Sizeof(lookupArgs{}), []string{"lookup", "quantizeGrad"}},
		{unsafe.Sizeof(pointArgs{}), []string{"combine", "activate", "maxPool"}},
		{unsafe.Sizeof(gradArgs{}), []string{"activateGrad", "maxPoolGrad"}},
		{unsafe.Sizeof(sliceArgs{}), []string{"slice", "sliceGrad"}},
		{unsafe.Sizeof(tintArgs{}), []string{"tint", "tintGrad"}},
		{unsafe.Sizeof(judgeArgs{}), []string{"judge"}},
		{unsafe.Sizeof(perceptualArgs{}), []string{"perceptual"}},
		{unsafe.Sizeof(balanceArgs{}), []string{"balance"}},
		{unsafe.Sizeof(nudgeArgs{}), []string{"squaresOf", "nudgeNorm", "nudge"}},
		{unsafe.Sizeof(unitArgs{}), []string{"unit", "unitGrad"}},
		{unsafe.Sizeof(roundArgs{}), []string{"roundCodes", "roundGrad"}},
		{unsafe.Sizeof(tallyArgs{}), []string{"tally"}},
		{unsafe.Sizeof(spectralArgs{}), []string{"spectralRows", "spectralLeft", "spectralColumns", "spectralRight", "spectralDivide", "spectralAlong", "spectralGrad"}},
		{unsafe.Sizeof(volumeArgs{}), []string{"volumes", "gradientOut"}},
		{unsafe.Sizeof(scaleArgs{}), []string{"halve", "spread"}},
		{unsafe.Sizeof(blurArgs{}), []string{"blur"}},
		{unsafe.Sizeof(mapArgs{}), []string{"similarityMap", "gradientMap"}},
		{unsafe.Sizeof(factorsArgs{}), []string{"factors"}},
	} {
		for _, k := range group.kernels {
			sizes[k] = group.size
		}
	}
	all, err := modules()
	if err != nil {
		t.Fatal(err)
	}
	parameter := regexp.MustCompile(`\.entry (\w+)\(\s*\.param \.align \d+ \.b8 \w+\[(\d+)\]`)
	for _, module := range all {
		text := module.text
		found := parameter.FindAllStringSubmatch(text, -1)
		if len(found) != len(entries(text)) {
			t.Errorf("%d kernels, %d with one struct", len(entries(text)), len(found))
		}
		for _, m := range found {
			want, err := strconv.Atoi(m[2])
			if err != nil {
				t.Fatal(err)
			}
			if got, ok := sizes[m[1]]; !ok || int(got) != want {
				t.Errorf("%s reads %d bytes, Go hands it %d", m[1], want, got)
			}
			delete(sizes, m[1])
		}
	}
	for k := range sizes {
		t.Errorf("no kernel %s", k)
	}
}
