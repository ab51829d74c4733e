//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"unsafe"

	"github.com/flowrun/flowrun/gpu"
)

// tried are instructions with operands a and b (in %r, %f, %rd and %fd 1 and 2) and what PTX's document says of them where it isn't obvious;
// the result is in %rd0.
var tried = []struct {
	text       string
	a, b, want uint64
}{
	{"shl.b32 %r0, %r1, %r2;", 1, 31, 1 << 31},
	{"shl.b32 %r0, %r1, %r2;", 3, 32, 0},
	{"shr.u32 %r0, %r1, %r2;", 1 << 31, 40, 0},
	{"shr.s32 %r0, %r1, %r2;", 1 << 31, 40, 0xffffffff},
	{"shl.b64 %rd0, %rd1, %r2;", 1, 64, 0},
	{"bfe.u32 %r0, %r1, 8, 12;", 0x12345678, 0, 0x456},
	{"mul.hi.s32 %r0, %r1, %r2;", 0xfffffffe, 3, 0xffffffff},
	{"mul.wide.s32 %rd0, %r1, %r2;", 0xffffffff, 5, ^uint64(4)},
	{"mul.wide.u32 %rd0, %r1, %r2;", 0xffffffff, 5, 0x4fffffffb},
	{"mad.lo.s32 %r0, %r1, %r2, %r2;", 0x80000001, 3, 0x80000006},
	{"div.s32 %r0, %r1, %r2;", 0xfffffff9, 2, 0xfffffffd}, // -7/2 = -3
	{"rem.s32 %r0, %r1, %r2;", 0xfffffff9, 2, 0xffffffff},
	{"min.s32 %r0, %r1, %r2;", 0xffffffff, 2, 0xffffffff},
	{"popc.b32 %r0, %r1;", 0xf0f00001, 0, 9},
	{"cvt.s64.s32 %rd0, %r1;", 0x80000000, 0, 0xffffffff80000000},
	{"cvt.u64.u32 %rd0, %r1;", 0x80000000, 0, 0x80000000},
	{"cvt.rzi.s32.f32 %r0, %f1;", f32(-2.9), 0, 0xfffffffe},
	{"cvt.rzi.s32.f32 %r0, %f1;", f32(3e9), 0, 0x7fffffff},
	{"cvt.rzi.s32.f32 %r0, %f1;", f32(math.NaN()), 0, 0},
	{"cvt.rni.f32.f32 %f0, %f1;", f32(2.5), 0, f32(2)},
	{"cvt.rni.f32.f32 %f0, %f1;", f32(-3.5), 0, f32(-4)},
	{"cvt.rn.f32.s32 %f0, %r1;", 16777217, 0, f32(16777216)},
	{"cvt.rn.bf16x2.f32 %r0, %f1, %f2;", f32(1), f32(2), 0x3f804000}, // the first is the upper half
	{"cvt.rn.bf16x2.f32 %r0, %f1, %f2;", 0x3f808000, 0x3f818000, 0x3f803f82},
	{"cvt.rn.bf16x2.f32 %r0, %f1, %f2;", 0x7f7fffff, f32(math.Inf(-1)), 0x7f80ff80},
	{"fma.rn.f32 %f0, %f1, %f1, %f2;", 0x3f800001, f32(-1 - 0x1p-22), f32(0x1p-46)},
	{"div.rn.f32 %f0, %f1, %f2;", f32(1), f32(3), 0x3eaaaaab},
	{"sqrt.rn.f32 %f0, %f1;", f32(2), 0, 0x3fb504f3},
	{"rcp.approx.ftz.f32 %f0, %f1;", 1, 0, f32(math.Inf(1))}, // less than the least normal number is zero
	{"mul.f32 %f0, %f1, %f2;", f32(0x1p-100), f32(0x1p-40), f32(0x1p-140)},
	{"neg.f32 %f0, %f1;", 0, 0, 1 << 31},
	{"abs.f32 %f0, %f1;", f32(-3), 0, f32(3)},
	{"setp.lt.f32 %p0, %f1, %f2;", f32(math.NaN()), 0, 0},
	{"setp.ltu.f32 %p0, %f1, %f2;", f32(math.NaN()), 0, 1},
	{"setp.neu.f32 %p0, %f1, %f2;", f32(math.NaN()), 0, 1},
	{"setp.num.f32 %p0, %f1, %f2;", f32(math.NaN()), 0, 0},
	{"setp.leu.f32 %p0, %f1, %f2;", f32(2), f32(1), 0},
	{"setp.lt.s32 %p0, %r1, %r2;", 0xffffffff, 1, 1},
	{"setp.lt.u32 %p0, %r1, %r2;", 0xffffffff, 1, 0},
	{"setp.gt.s64 %p0, %rd1, %rd2;", 1, 1 << 63, 1},
	{"fma.rn.f64 %fd0, %fd1, %fd1, %fd2;", math.Float64bits(1 + 0x1p-52), math.Float64bits(-1 - 0x1p-51), math.Float64bits(0x1p-104)},
	{"cvt.rn.f32.f64 %f0, %fd1;", math.Float64bits(1 + 0x1p-24), 0, f32(1)},
	{"mov.u32 %r3, %tid.x;\n\tshfl.sync.bfly.b32 %r0, %r3, 5, 31, -1;", 0, 0, 5},
	{"mov.u32 %r3, %tid.x;\n\tadd.s32 %r4, %r3, 7;\n\tshfl.sync.idx.b32 %r0, %r4, 30, 31, -1;", 0, 0, 37},
	{"mov.u32 %r3, %tid.x;\n\tsetp.gt.u32 %p1, %r3, 29;\n\tvote.sync.ballot.b32 %r0, %p1, -1;", 0, 0, 3 << 30},
	{"ld.param.s32 %rd0, [try_param_0];", 0x80000000, 0, 0xffffffff80000000},
	{"{.reg .pred p; setp.eq.u32 p, 0, 0; selp.b32 %r0, %r1, %r2, p;}", 3, 4, 3},
}

// f32 is a number's bits.
func f32(v float64) uint64 { return uint64(math.Float32bits(float32(v))) }

// Instructions do what PTX's document says, on the stand-in's machine and on a card.
func TestInstructions(t *testing.T) {
	if strings.Contains(os.Getenv(Library), "standin") {
		onMachine(t)
	}
	var text strings.Builder
	text.WriteString(".version 7.0\n.target sm_80\n.address_size 64\n")
	for i, try := range tried {
		body := try.text
		for _, result := range []struct{ register, to string }{{"%r0,", "cvt.u64.u32 %rd0, %r0;"}, {"%f0,", "mov.b32 %r0, %f0;\n\tcvt.u64.u32 %rd0, %r0;"},
			{"%p0,", "selp.u32 %r0, 1, 0, %p0;\n\tcvt.u64.u32 %rd0, %r0;"}, {"%fd0,", "mov.b64 %rd0, %fd0;"}} {
			if strings.Contains(body, result.register) {
				body += "\n\t" + result.to
				break
			}
		}
		fmt.Fprintf(&text, `.visible .entry try%d(
	.param .align 8 .b8 try%[1]d_param_0[24]
)
.maxntid 32, 1, 1
{
	.reg .pred %%p<2>;
	.reg .b32 %%r<5>;
	.reg .f32 %%f<3>;
	.reg .b64 %%rd<6>;
	.reg .f64 %%fd<3>;
	ld.param.u64 %%rd1, [try%[1]d_param_0];
	ld.param.u64 %%rd2, [try%[1]d_param_0+8];
	ld.param.u64 %%rd3, [try%[1]d_param_0+16];
	cvt.u32.u64 %%r1, %%rd1;
	cvt.u32.u64 %%r2, %%rd2;
	mov.b32 %%f1, %%r1;
	mov.b32 %%f2, %%r2;
	mov.b64 %%fd1, %%rd1;
	mov.b64 %%fd2, %%rd2;
	%s
	mov.u32 %%r4, %%tid.x;
	mul.wide.u32 %%rd4, %%r4, 8;
	add.s64 %%rd5, %%rd3, %%rd4;
	st.global.u64 [%%rd5], %%rd0;
	ret;
}
`, i, strings.ReplaceAll(body, "try_", fmt.Sprintf("try%d_", i)))
	}
	e := open(t).(*Engine)
	if err := e.o.wait(func() error { return e.compile(module{text.String(), everyone}) }); err != nil {
		t.Fatal(err)
	}
	if err := e.Reserve(1 << 20); err != nil {
		t.Fatal(err)
	}
	for i, try := range tried {
		run(e, fmt.Sprint("try", i), [3]int{1, 1, 1}, 32, struct{ a, b, out uint64 }{try.a, try.b, e.at(gpu.Ptr(256 * i))})
	}
	for i, try := range tried {
		var got [1]uint64
		e.Read(unsafe.Slice((*float32)(unsafe.Pointer(&got)), 2), gpu.Ptr(256*i))
		if got[0] != try.want {
			t.Errorf("%s a = %#x, b = %#x: %#x, want %#x", try.text, try.a, try.b, got[0], try.want)
		}
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}
