// Reads PTX: directives, declarations and instructions, each with its line.
#include "decode.h"
#include <cctype>
#include <cstring>

namespace ptx {
namespace {

struct Token {
	enum { WORD, NUMBER, STRING, SIGN, END } kind;
	std::string text;
	int line;
};

std::string at(int line, const std::string &why) {
	return "ptxas application ptx input, line " + std::to_string(line) + "; error   : " + why;
}

std::vector<Token> tokens(const char *s) {
	std::vector<Token> all;
	int line = 1;
	auto letter = [](char c) { return isalnum((u8)c) || c == '_' || c == '$' || c == '%' || c == '.'; };
	while (*s) {
		const char *from = s;
		if (*s == '\n') {
			line++, s++;
		} else if (isspace((u8)*s)) {
			s++;
		} else if (s[0] == '/' && s[1] == '/') {
			while (*s && *s != '\n') s++;
		} else if (*s == '"') {
			for (s++; *s && *s != '"' && *s != '\n';) s++;
			if (*s != '"') throw Error(at(line, "a string that doesn't end"));
			all.push_back({Token::STRING, std::string(from + 1, s++), line});
		} else if (isdigit((u8)*s)) {
			while (letter(*s)) s++;
			all.push_back({Token::NUMBER, std::string(from, s), line});
		} else if (letter(*s)) {
			while (letter(*s) || (s[0] == ':' && s[1] == ':' && (s[2] == '_' || isalpha((u8)s[2])))) s += *s == ':' ? 2 : 1;
			all.push_back({Token::WORD, std::string(from, s), line});
		} else if (strchr("{}[]()<>,;:+-@!", *s)) {
			all.push_back({Token::SIGN, std::string(1, *s++), line});
		} else {
			throw Error(at(line, std::string("an odd character '") + *s + "'"));
		}
	}
	all.push_back({Token::END, "the end", line});
	return all;
}

class Parser {
	std::vector<Token> all;
	size_t i = 0;
	std::map<int, std::string> files;
	std::string source; // of .loc
	std::map<std::string, size_t> dynamic; // names of the launch's shared memory and their alignment
	std::vector<std::map<std::string, std::string>> scopes; // in a kernel: what registers that were declared in braces are called
	int scope = 0;

	const Token &peek() const { return all[i]; }
	[[noreturn]] void fail(const std::string &why) const { throw Error(at(peek().line, why)); }
	[[noreturn]] void unexpected() const { fail("unexpected '" + peek().text + "'"); }
	Token take() { return all[peek().kind == Token::END ? i : i++]; }
	bool has(const char *text) {
		if (peek().kind == Token::STRING || peek().text != text) return false;
		i++;
		return true;
	}
	void must(const char *text) {
		if (!has(text)) fail(std::string("'") + text + "' expected, not '" + peek().text + "'");
	}
	std::string word() {
		if (peek().kind != Token::WORD) unexpected();
		return take().text;
	}
	u64 bits(const std::string &text, int radix, const char *digits) {
		char *end;
		u64 v = strtoull(digits, &end, radix);
		if (*end || end == digits) fail("the number " + text);
		return v;
	}
	u64 number() {
		if (peek().kind != Token::NUMBER) unexpected();
		std::string s = take().text;
		return s[0] == '0' && (s[1] == 'x' || s[1] == 'X') ? bits(s, 16, s.c_str() + 2) : bits(s, 10, s.c_str());
	}
	size_t numbers() { // 1, 2 or 3 of them, with their product
		size_t n = number();
		while (has(",")) n *= number();
		return n;
	}

	// named gives what a register is called, whose name may come again in other braces.
	std::string named(const std::string &name) const {
		for (size_t k = scopes.size(); k-- > 0;) {
			auto it = scopes[k].find(name);
			if (it != scopes[k].end()) return it->second;
		}
		return name;
	}

	Operand operand() {
		Operand o;
		if (has("[")) {
			o.kind = Operand::ADDRESS;
			o.name = named(word());
			if (has("+")) {
				bool minus = has("-");
				o.offset = (i64)number();
				if (minus) o.offset = -o.offset;
			}
			must("]");
		} else if (has("{")) {
			o.kind = Operand::LIST;
			do o.list.push_back(operand()); while (has(","));
			must("}");
		} else if (peek().kind == Token::WORD) {
			o.name = named(take().text);
			o.kind = o.name[0] == '%' ? Operand::REGISTER : Operand::SYMBOL;
		} else {
			o.kind = Operand::NUMBER;
			bool minus = has("-");
			std::string s = peek().text;
			if (peek().kind == Token::NUMBER && s.size() > 2 && s[0] == '0' && (s[1] == 'f' || s[1] == 'd')) {
				if (s.size() != (s[1] == 'f' ? 10 : 18) || minus) fail("the number " + s);
				o.number = take().text[1];
				o.bits = bits(s, 16, s.c_str() + 2);
			} else {
				o.bits = number();
				if (minus) o.bits = -o.bits;
			}
		}
		return o;
	}

	void location() { // .loc FILE LINE COLUMN
		int file = (int)number();
		u64 line = number();
		number();
		if (peek().text == ",") fail("a .loc of inlined code");
		source = files[file] + ":" + std::to_string(line);
	}

	void registersOf(Decoder &d) {
		static const std::map<std::string, int> types = {{".pred", 0}, {".b16", 2}, {".b32", 4}, {".b64", 8}, {".f32", 4}, {".f64", 8},
			{".u16", 2}, {".s16", 2}, {".u32", 4}, {".s32", 4}, {".u64", 8}, {".s64", 8}};
		std::string type = word();
		auto t = types.find(type);
		if (t == types.end()) fail("registers of type " + type);
		do {
			std::string name = word();
			if (!scopes.empty()) name = scopes.back()[name] = "%" + name + "#" + std::to_string(scope);
			if (has("<")) {
				if (!scopes.empty()) fail("numbered registers in braces");
				u64 n = number();
				must(">");
				for (u64 k = 0; k < n; k++) d.declare(name + std::to_string(k), t->second);
			} else {
				d.declare(name, t->second);
			}
		} while (has(","));
		must(";");
	}

	// array reads .align N .b8 NAME[N].
	std::string array(size_t &align, size_t &bytes) {
		must(".align");
		align = number();
		must(".b8");
		std::string name = word();
		must("[");
		bytes = peek().text == "]" ? 0 : number();
		must("]");
		return name;
	}

	void instruction(Decoder &d) {
		Instruction n;
		n.line = peek().line, n.source = source;
		if (has("@")) {
			n.unless = has("!");
			n.guard = named(word());
		}
		n.name = word();
		if (!islower((u8)n.name[0])) fail("unknown directive " + n.name);
		if (!has(";")) {
			do n.operands.push_back(operand()); while (has(","));
			must(";");
		}
		d.k.text.push_back(n);
	}

	void body(Decoder &d) {
		must("{");
		source.clear();
		for (;;) {
			if (has("{")) {
				scopes.emplace_back();
				scope++;
			} else if (has("}")) {
				if (scopes.empty()) break;
				scopes.pop_back();
			} else if (has(".reg")) {
				registersOf(d);
			} else if (has(".shared")) {
				size_t align, bytes;
				std::string name = array(align, bytes);
				must(";");
				size_t from = (sharedBase + d.k.shared + align - 1) / align * align;
				d.k.shared = from - sharedBase + bytes;
				d.symbols[name] = from;
			} else if (has(".loc")) {
				location();
			} else if (has(".pragma")) {
				if (take().text != "nounroll") fail("a .pragma other than nounroll");
				must(";");
			} else if (peek().kind == Token::WORD && all[i + 1].text == ":" && all[i + 1].kind == Token::SIGN) {
				if (!d.labels.emplace(peek().text, (u32)d.k.text.size()).second) fail("label " + peek().text + " twice");
				i += 2;
			} else {
				instruction(d);
			}
		}
		// Dynamic memory lies behind what is declared.
		for (auto &s : dynamic) d.k.dynamicAlign = std::max(d.k.dynamicAlign, s.second);
		for (auto &s : dynamic) d.symbols[s.first] = d.k.dynamicAt();
	}

	void kernel(Module &m) {
		auto k = std::make_unique<Kernel>();
		Decoder d(*k);
		d.k.units = 1; // 0 is none
		k->name = word();
		must("(");
		if (!has(")")) {
			must(".param");
			size_t align, bytes;
			d.symbols[array(align, bytes)] = 0;
			k->parameters = bytes;
			must(")");
		}
		while (peek().text != "{") {
			std::string s = word();
			if (s == ".maxntid") k->threads = (u32)numbers();
			else if (s == ".minnctapersm") number();
			else fail("unknown directive " + s);
		}
		if (k->threads > 1024 || k->threads % 32) fail(".maxntid " + std::to_string(k->threads) + ": at most 1024, whole warps");
		body(d);
		for (const Instruction &n : k->text) {
			d.at = &n;
			k->ops.push_back(d.decode());
			k->ops.back().instruction = (u32)k->ops.size() - 1;
		}
		if (k->text.empty() || (k->text.back().name != "ret" && k->text.back().name != "bra.uni")) fail("a kernel that ends without ret");
		m.kernels[k->name] = std::move(k);
	}

public:
	explicit Parser(const char *text) : all(tokens(text)) {}

	std::unique_ptr<Module> module() {
		auto m = std::make_unique<Module>();
		while (peek().kind != Token::END) {
			std::string s = word();
			if (s == ".version") {
				m->version = take().text;
			} else if (s == ".target") {
				m->target = word();
			} else if (s == ".address_size") {
				if (number() != 64) fail("addresses of other than 64 bits");
			} else if (s == ".file") {
				int n = (int)number();
				files[n] = take().text;
			} else if (s == ".extern") {
				must(".shared");
				size_t align, bytes;
				std::string name = array(align, bytes);
				must(";");
				dynamic[name] = align;
			} else if (s == ".visible") {
				must(".entry");
				kernel(*m);
			} else {
				fail("unknown directive " + s);
			}
		}
		if (m->version.empty() || m->target.empty()) throw Error(at(1, "no .version or no .target"));
		return m;
	}
};
} // namespace

std::unique_ptr<Module> parse(const char *text) {
	if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) throw Error("the stand-in's machine for PTX wants a CPU with AVX2 and FMA");
	return Parser(text).module();
}

std::vector<std::string> split(const std::string &name, char by) {
	std::vector<std::string> parts(1);
	for (char c : name) {
		if (c == by) parts.emplace_back();
		else parts.back() += c;
	}
	return parts;
}

void Decoder::fail(const std::string &why) const { throw Error(ptx::at(at->line, why)); }

} // namespace ptx
