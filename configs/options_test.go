package configs_test

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/configs"
)

// every has a key of each type.
type every struct {
	Text    string     `key:"text" default:"a word" doc:"Text."`
	Word    string     `key:"word" default:"red" oneof:"red green" doc:"Word."`
	Flag    bool       `key:"flag" default:"true" doc:"Flag."`
	Int     int        `key:"int" default:"1e3" min:"-5" max:"2000" doc:"Int."`
	Wide    int64      `key:"wide" default:"-9223372036854775808" doc:"Wide."`
	Seed    uint64     `key:"seed" default:"18446744073709551615" doc:"Seed."`
	Size    int64      `key:"size" default:"1.5GiB" unit:"bytes" min:"0" doc:"Size."`
	Rate    float64    `key:"rate" default:"1e-4" doc:"Rate."`
	Ints    [3]int     `key:"ints" default:"[1, 2, 3]" unit:"voxels x, y, z" doc:"Ints."`
	Range   [2]float64 `key:"range" default:"[-1, 1.5]" doc:"Range."`
	Texts   []string   `key:"texts" default:"[a, b]" example:"[c]" doc:"Texts."`
	Indices []int      `key:"indices" default:"[4]" doc:"Indices."`
	Axes    []string   `key:"axes" default:"[]" oneof:"x y z" doc:"Axes."`
	Nested  struct {
		Deep struct {
			Level int `key:"level" default:"3" doc:"Level."`
		} `key:"deep" doc:"Deeper."`
		Zero float64 `key:"zero" doc:"Zero."`
	} `key:"nested" doc:"Nested."`
	Unkeyed func()
}

func TestSetDefaults(t *testing.T) {
	got := every{Text: "old", Texts: []string{"old"}}
	got.Nested.Zero = 5
	if err := configs.SetDefaults(&got); err != nil {
		t.Fatal(err)
	}
	want := every{
		Text: "a word", Word: "red", Flag: true, Int: 1000, Wide: math.MinInt64, Seed: math.MaxUint64, Size: 3 << 29, Rate: 1e-4,
		Ints: [3]int{1, 2, 3}, Range: [2]float64{-1, 1.5}, Texts: []string{"a", "b"}, Indices: []int{4}, Axes: []string{},
	}
	want.Nested.Deep.Level = 3
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestLint(t *testing.T) {
	if err := configs.Lint(&every{}); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		options any
		want    string
	}{
		{every{}, "want a pointer"},
		{(*every)(nil), "want a pointer"},
		{new(int), "want a pointer"},
		{&struct {
			A int `key:"a" default:"0" min:"1" doc:"A."`
		}{}, "default of a: want at least 1, got 0"},
		{&struct {
			A int `key:"a" default:"[" doc:"A."`
		}{}, "default of a"},
		{&struct {
			A int `key:"a" min:"one" doc:"A."`
		}{}, `bound "one"`},
		{&struct {
			A string `key:"a" example:"c" oneof:"a b" doc:"A."`
		}{}, "example of a"},
		{&struct {
			A int `key:"a" doc:"no sentence"`
		}{}, "sentence"},
		{&struct {
			A int `key:"bigA" doc:"A."`
		}{}, "snake_case"},
		{&struct {
			A int `key:"a.b" doc:"A."`
		}{}, "can't be set"},
		{&struct {
			a int `key:"a" doc:"A."`
		}{}, "can't be set"},
		{&struct {
			A int `key:"a" doc:"A."`
			B int `key:"a" doc:"A."`
		}{}, "twice"},
		{&struct {
			A int `key:"a" required:"true" default:"1" doc:"A."`
		}{}, "required and has a default"},
		{&struct {
			A float32 `key:"a" doc:"A."`
		}{}, "float32"},
		{&struct {
			N struct {
				A int `key:"a" doc:"no sentence"`
			} `key:"n" doc:"N."`
		}{}, "sentence"},
	} {
		if err := configs.Lint(c.options); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%T: %v, want %s", c.options, err, c.want)
		}
	}
}

func TestDescribe(t *testing.T) {
	keys := configs.Describe(&every{})
	var lines []string
	for _, k := range keys {
		lines = append(lines, fmt.Sprintf("%s|%s|%s|%s|%s|%s|%v", k.Name, k.Type, k.Unit, k.Default, k.Example, k.Bounds, k.Choices))
	}
	want := `text|text||a word|||[]
word|text||red|||[red green]
flag|true or false||true|||[]
int|a whole number||1e3||-5 to 2000|[]
wide|a whole number||-9223372036854775808|||[]
seed|a whole number||18446744073709551615|||[]
size|a size|bytes|1.5GiB||at least 0|[]
rate|a number||1e-4|||[]
ints|3 whole numbers|voxels x, y, z|[1, 2, 3]|||[]
range|2 numbers||[-1, 1.5]|||[]
texts|a list of words||[a, b]|[c]||[]
indices|a list of whole numbers||[4]|||[]
axes|a list of words||[]|||[x y z]
nested|block|||||[]
nested.deep|block|||||[]
nested.deep.level|a whole number||3|||[]
nested.zero|a number||0|||[]`
	if got := strings.Join(lines, "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	read := configs.Describe(&readOptions{})
	if !read[0].Required || read[0].Default != "" || read[2].Default != "false" || read[0].Doc != "Where the scans are: folders, globs or list files." {
		t.Errorf("%+v", read)
	}
	if !keys[13].Block() || keys[0].Block() {
		t.Error("Block doesn't tell blocks from keys")
	}
}

func TestSizes(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "1024": 1024, "1e9": 1e9, "512MiB": 512 << 20, "16GiB": 16 << 30, "2GB": 2e9, "1.5 KiB": 1536, "7kB": 7000, "3tib": 3 << 40, "5B": 5, "1_000": 1000,
	} {
		var o every
		if err := decode("size: "+in, &o); err != nil || o.Size != want {
			t.Errorf("%s: %d %v, want %d", in, o.Size, err, want)
		}
	}
	for _, in := range []string{"-1", "-1GiB", "1e30", "9e9GiB", "GiB", "1.5", "0x10", "1GiBB", "nanGiB", "infGiB", "1 2GiB"} {
		var o every
		if err := decode("size: "+in, &o); err == nil {
			t.Errorf("%s: read as %d", in, o.Size)
		}
	}
}

func decode(text string, ptr any) error {
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		return err
	}
	return configs.Decode(&doc, ptr)
}

func TestDecode(t *testing.T) {
	var o every
	if err := configs.SetDefaults(&o); err != nil {
		t.Fatal(err)
	}
	err := decode("int: &n 7\nindices: [*n, 2]\ntexts: 5\nnested: {deep: {level: *n}}\ntext: 2024-01-02\nrate: 3", &o)
	if err != nil {
		t.Fatal(err)
	}
	if o.Int != 7 || !reflect.DeepEqual(o.Indices, []int{7, 2}) || !reflect.DeepEqual(o.Texts, []string{"5"}) ||
		o.Nested.Deep.Level != 7 || o.Text != "2024-01-02" || o.Rate != 3 || o.Word != "red" {
		t.Errorf("%+v", o)
	}
	err = decode("int: 3000\nwrod: red\nnested:\n  deep:\n    level: x\n", &o)
	want := "line 1: int: want -5 to 2000, got 3000\nline 2: wrod: unknown key; did you mean \"word\"?\nline 5: nested.deep.level: want a whole number, got \"x\""
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	if o.Int != 7 {
		t.Error("a refused value was set")
	}
}

// Words with commas between them are a list where no word has a comma of its own.
func TestDecodeCommas(t *testing.T) {
	var o every
	err := decode("ints: 32, 1_000,1e3\nrange: \"-0.5,2\"\nindices: 5,4\naxes: 'z,x'\ntexts: a,b", &o)
	if err != nil || o.Ints != [3]int{32, 1000, 1000} || o.Range != [2]float64{-0.5, 2} || !slices.Equal(o.Indices, []int{5, 4}) ||
		!slices.Equal(o.Axes, []string{"z", "x"}) || !slices.Equal(o.Texts, []string{"a,b"}) {
		t.Errorf("%+v, %v", o, err)
	}
	for in, want := range map[string]string{
		"ints: 32,32":      "line 1: ints: want 3 whole numbers, such as [1, 2, 3], got [32, 32]",
		"ints: 1,,3":       "line 1: ints: want 3 whole numbers, such as [1, 2, 3], got nothing",
		"ints: 1,a,3":      `line 1: ints: want 3 whole numbers, such as [1, 2, 3], got "a"`,
		"range: !!str 1,2": "line 1: range: want 2 numbers, such as [-1, 1.5], got \"1,2\"",
		"int: 1,2":         `line 1: int: want a whole number, got "1,2"`,
		"axes: x,q":        `line 1: axes: want one of x, y, z, got "q"`,
	} {
		if err := decode(in, new(every)); err == nil || err.Error() != want {
			t.Errorf("%s: %v\nwant %s", in, err, want)
		}
	}
}

// Whatever the options, Encode writes what Decode reads back to the same.
func TestEncodeRoundTrip(t *testing.T) {
	finite := rapid.Float64().Filter(func(f float64) bool { return !math.IsInf(f, 0) && !math.IsNaN(f) })
	words := rapid.String().Filter(func(s string) bool { return !strings.HasPrefix(s, "~/") }) // refused
	rapid.Check(t, func(t *rapid.T) {
		want := every{
			Text: words.Draw(t, "text"), Word: rapid.SampledFrom([]string{"red", "green"}).Draw(t, "word"),
			Flag: rapid.Bool().Draw(t, "flag"), Int: rapid.IntRange(-5, 2000).Draw(t, "int"), Wide: rapid.Int64().Draw(t, "wide"),
			Seed: rapid.Uint64().Draw(t, "seed"), Size: rapid.Int64Range(0, math.MaxInt64).Draw(t, "size"), Rate: finite.Draw(t, "rate"),
			Ints:  [3]int(rapid.SliceOfN(rapid.Int(), 3, 3).Draw(t, "ints")),
			Range: [2]float64(rapid.SliceOfN(finite, 2, 2).Draw(t, "range")),
			Texts: rapid.SliceOf(words).Draw(t, "texts"), Indices: rapid.SliceOf(rapid.Int()).Draw(t, "indices"),
		}
		want.Nested.Deep.Level = rapid.Int().Draw(t, "level")
		text, err := yaml.Marshal(configs.Encode(&want))
		if err != nil {
			t.Fatal(err)
		}
		var got every
		if err := decode(string(text), &got); err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		if len(want.Texts) == 0 {
			got.Texts, want.Texts = nil, nil
		}
		if len(want.Indices) == 0 {
			got.Indices, want.Indices = nil, nil
		}
		got.Axes = nil
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("got  %+v\nwant %+v\nfrom\n%s", got, want, text)
		}
	})
}

// Texts that YAML would read as something else, or lose.
func TestEncodeTexts(t *testing.T) {
	for _, text := range []string{
		"", " ", "\t\na", "\n\t", "a\nb\n\n", "\u2028\ta", "\u0085", "\r\n", "\x00", "\ufeff", "true", "no", "y", "null", "~", "1e3", ".nan", "0x1", "1_000",
		"2024-01-02", "- a", "a: b", "# a", "a #b", "'", "\"", "*a", "&a", "!!int 1", "<<", "=", "[", "{}", ",", "|", ">", "%", "@", "`", "?", "\\",
	} {
		want := every{Text: text, Texts: []string{text, text}, Word: "red", Indices: []int{}, Axes: []string{}}
		written, err := yaml.Marshal(configs.Encode(&want))
		if err != nil {
			t.Fatal(err)
		}
		var got every
		if err := decode(string(written), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %q %v from\n%s", text, got.Text, err, written)
		}
	}
}

func TestSuggest(t *testing.T) {
	keys := []string{"train.lr", "train.ema", "train.validate.every", "patch", "stride", "padding", "seed"}
	for word, want := range map[string]string{
		"lr": "train.lr", "pacth": "patch", "Stride": "stride", "strid": "stride", "padd": "padding", "every": "train.validate.every",
		"trian.lr": "train.lr", "train.eam": "train.ema", "read": "", "xyz": "", "": "", strings.Repeat("a", 1000): "",
	} {
		if got, _ := configs.Suggest(word, keys); got != want {
			t.Errorf("%.20s: %q, want %q", word, got, want)
		}
	}
}
