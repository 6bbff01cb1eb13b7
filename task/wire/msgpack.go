package wire

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/batchyard/batchyard/task"
)

// maxContainers is how many arrays and maps one record may have.
const maxContainers = 1 << 20

// checkMsgpack checks one MessagePack value without allocating: every length fits into the
// remaining bytes, nesting is limited, nothing follows. After it a decoder can safely
// allocate what a header announces. (Otherwise a 5-byte array header makes the library
// allocate gigabytes.)
func checkMsgpack(b []byte) error { return checkWeighed(b, nil) }

func checkWeighed(b []byte, weigh func(int, head)) error {
	w := walker{b: b, weigh: weigh}
	if err := w.value(0); err != nil {
		return task.NewFieldError("", "send one whole MessagePack map per record", "%s", err)
	}
	if w.at != len(b) {
		return task.NewFieldError("", "send one MessagePack map per record", "%d bytes follow the value", len(b)-w.at)
	}
	return nil
}

// head is the header of a MessagePack value.
type head struct {
	kind byte   // one of the constants below
	n    int    // bytes that follow (str, bin, ext) or elements (array, map: pairs)
	ext  int8   // type of an ext
	num  uint64 // bits of an integer or float
}

const (
	kindNil = iota
	kindFalse
	kindTrue
	kindInt
	kindUint
	kindFloat32
	kindFloat64
	kindStr
	kindBin
	kindExt
	kindArray
	kindMap
)

type walker struct {
	b          []byte
	at         int
	containers int
	values     int             // values that were skipped
	room       int             // limit of the JSON that is written
	weigh      func(int, head) // called with the depth and head of every array and map; may be nil
}

func (w *walker) left() int { return len(w.b) - w.at }

// value skips one value.
func (w *walker) value(depth int) error {
	h, err := w.head()
	if err != nil {
		return err
	}
	w.values++
	switch h.kind {
	case kindStr, kindBin, kindExt:
		w.at += h.n
	case kindArray, kindMap:
		if w.weigh != nil {
			w.weigh(depth, h)
		}
		n, err := w.enter(h, depth)
		if err != nil {
			return err
		}
		for range n {
			if err := w.value(depth + 1); err != nil {
				return err
			}
		}
	}
	return nil
}

// enter checks the header of a container and returns how many values it has.
func (w *walker) enter(h head, depth int) (int, error) {
	if depth >= task.MaxInputDepth {
		return 0, fmt.Errorf("it is nested deeper than %d", task.MaxInputDepth)
	}
	if w.containers++; w.containers > maxContainers {
		return 0, fmt.Errorf("it has more than %d arrays and maps", maxContainers)
	}
	n := h.n
	if h.kind == kindMap {
		if n > w.left()/2 {
			return 0, fmt.Errorf("a map of %d entries does not fit into the %d bytes that remain", h.n, w.left())
		}
		return 2 * n, nil
	}
	if n > w.left() {
		return 0, fmt.Errorf("an array of %d elements does not fit into the %d bytes that remain", h.n, w.left())
	}
	return n, nil
}

// uint reads n big-endian bytes.
func (w *walker) uint(n int) (uint64, error) {
	if w.left() < n {
		return 0, fmt.Errorf("it ends in the middle of a value")
	}
	var v uint64
	for _, c := range w.b[w.at : w.at+n] {
		v = v<<8 | uint64(c)
	}
	w.at += n
	return v, nil
}

// head reads the header of a value and checks that what it announces fits.
func (w *walker) head() (head, error) {
	c, err := w.uint(1)
	if err != nil {
		return head{}, err
	}
	switch {
	case c <= 0x7f:
		return head{kind: kindInt, num: c}, nil
	case c <= 0x8f:
		return head{kind: kindMap, n: int(c & 0x0f)}, nil
	case c <= 0x9f:
		return head{kind: kindArray, n: int(c & 0x0f)}, nil
	case c <= 0xbf:
		return w.sized(kindStr, int(c&0x1f))
	case c >= 0xe0:
		return head{kind: kindInt, num: uint64(int64(int8(c)))}, nil
	}
	switch c {
	case 0xc0:
		return head{kind: kindNil}, nil
	case 0xc2:
		return head{kind: kindFalse}, nil
	case 0xc3:
		return head{kind: kindTrue}, nil
	case 0xc4, 0xc5, 0xc6:
		return w.lengthThen(kindBin, 1<<(c-0xc4))
	case 0xc7, 0xc8, 0xc9:
		return w.lengthThen(kindExt, 1<<(c-0xc7))
	case 0xca:
		v, err := w.uint(4)
		return head{kind: kindFloat32, num: v}, err
	case 0xcb:
		v, err := w.uint(8)
		return head{kind: kindFloat64, num: v}, err
	case 0xcc, 0xcd, 0xce, 0xcf:
		v, err := w.uint(1 << (c - 0xcc))
		return head{kind: kindUint, num: v}, err
	case 0xd0, 0xd1, 0xd2, 0xd3:
		size := 1 << (c - 0xd0)
		v, err := w.uint(size)
		shift := 64 - 8*size
		return head{kind: kindInt, num: uint64(int64(v<<shift) >> shift)}, err
	case 0xd4, 0xd5, 0xd6, 0xd7, 0xd8:
		return w.sized(kindExt, 1<<(c-0xd4))
	case 0xd9, 0xda, 0xdb:
		return w.lengthThen(kindStr, 1<<(c-0xd9))
	case 0xdc, 0xdd:
		n, err := w.uint(2 << (c - 0xdc))
		return head{kind: kindArray, n: int(n)}, err
	case 0xde, 0xdf:
		n, err := w.uint(2 << (c - 0xde))
		return head{kind: kindMap, n: int(n)}, err
	}
	return head{}, fmt.Errorf("no MessagePack value starts with 0x%02x", c)
}

func (w *walker) lengthThen(kind byte, size int) (head, error) {
	n, err := w.uint(size)
	if err != nil {
		return head{}, err
	}
	return w.sized(kind, int(n))
}

func (w *walker) sized(kind byte, n int) (head, error) {
	h := head{kind: kind, n: n}
	if kind == kindExt {
		t, err := w.uint(1)
		if err != nil {
			return head{}, err
		}
		h.ext = int8(t)
	}
	if n > w.left() {
		return head{}, fmt.Errorf("a value of %d bytes does not fit into the %d that remain", n, w.left())
	}
	return h, nil
}

// msgpackToJSON converts an input to JSON: bin and str contain JSON already, a map is
// converted member by member. The bytes have passed [checkMsgpack].
func msgpackToJSON(raw []byte) ([]byte, error) {
	w := walker{b: raw}
	h, err := w.head()
	if err != nil {
		return nil, err
	}
	switch h.kind {
	case kindNil:
		return nil, nil
	case kindStr, kindBin:
		return append([]byte(nil), w.b[w.at:w.at+h.n]...), nil
	case kindMap:
		// Numbers and some characters become longer, so a second try has twice as much
		// room. Real inputs do not need more.
		for _, room := range []int{len(raw) + len(raw)/4 + 1<<10, 2*len(raw) + len(raw)/4 + 8<<10} {
			w.at, w.containers, w.room = 0, 0, room
			out, err := w.json(make([]byte, 0, room), 0)
			if !errors.Is(err, errRoom) {
				return out, err
			}
		}
		return nil, task.NewFieldError("input", "send it as JSON text", "as JSON it would be more than twice as long")
	}
	return nil, task.NewFieldError("input", "send the request body as a map, or as JSON text", "it is neither a map nor JSON text")
}

func (w *walker) json(out []byte, depth int) ([]byte, error) {
	h, err := w.head()
	if err != nil {
		return nil, err
	}
	if len(out) > w.room-reserve {
		return nil, errRoom
	}
	switch h.kind {
	case kindNil:
		return append(out, "null"...), nil
	case kindFalse:
		return append(out, "false"...), nil
	case kindTrue:
		return append(out, "true"...), nil
	case kindInt:
		return strconv.AppendInt(out, int64(h.num), 10), nil
	case kindUint:
		return strconv.AppendUint(out, h.num, 10), nil
	case kindFloat32:
		return appendFloat(out, float64(math.Float32frombits(uint32(h.num))), 32)
	case kindFloat64:
		return appendFloat(out, math.Float64frombits(h.num), 64)
	case kindStr:
		s := w.b[w.at : w.at+h.n]
		w.at += h.n
		return w.appendString(out, s)
	case kindBin: // images and audio: JSON has no bytes, and the APIs expect base64
		s := w.b[w.at : w.at+h.n]
		w.at += h.n
		if len(out)+base64.StdEncoding.EncodedLen(len(s)) > w.room-reserve {
			return nil, errRoom
		}
		out = append(out, '"')
		out = base64.StdEncoding.AppendEncode(out, s)
		return append(out, '"'), nil
	case kindExt:
		return nil, task.NewFieldError("input", "send plain values, times as text", "it contains an extension value of type %d", h.ext)
	}
	return w.jsonContainer(out, h, depth)
}

func (w *walker) jsonContainer(out []byte, h head, depth int) ([]byte, error) {
	if _, err := w.enter(h, depth); err != nil {
		return nil, err
	}
	open, closing := byte('['), byte(']')
	if h.kind == kindMap {
		open, closing = '{', '}'
	}
	out = append(out, open)
	for i := range h.n {
		if i > 0 {
			out = append(out, ',')
		}
		if h.kind == kindMap {
			k, err := w.head()
			if err != nil {
				return nil, err
			}
			if k.kind != kindStr {
				return nil, task.NewFieldError("input", "use text as keys", "a key is not text")
			}
			if out, err = w.appendString(out, w.b[w.at:w.at+k.n]); err != nil {
				return nil, err
			}
			w.at += k.n
			out = append(out, ':')
		}
		var err error
		if out, err = w.json(out, depth+1); err != nil {
			return nil, err
		}
	}
	return append(out, closing), nil
}

func appendFloat(out []byte, f float64, bits int) ([]byte, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return nil, task.NewFieldError("input", "send finite numbers", "it contains a number that JSON cannot represent")
	}
	return strconv.AppendFloat(out, f, 'g', -1, bits), nil
}

// reserve is more than anything needs that is written without checking for room: a number,
// a word, quotes and commas.
const reserve = 64

var errRoom = errors.New("there is no room for the JSON")

const hexDigits = "0123456789abcdef"

// appendString writes text as a JSON string, no longer than necessary.
func (w *walker) appendString(out, s []byte) ([]byte, error) {
	if !utf8.Valid(s) {
		return nil, task.NewFieldError("input", "send text as UTF-8 and bytes as bin", "it contains text that is not valid UTF-8")
	}
	n := len(s)
	for _, c := range s {
		switch {
		case c == '"' || c == '\\' || c == '\n' || c == '\r' || c == '\t':
			n++
		case c < ' ':
			n += 5
		}
	}
	if len(out)+n > w.room-reserve {
		return nil, errRoom
	}
	out = append(out, '"')
	if n == len(s) {
		return append(append(out, s...), '"'), nil
	}
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			out = append(out, '\\', c)
		case c == '\n':
			out = append(out, '\\', 'n')
		case c == '\r':
			out = append(out, '\\', 'r')
		case c == '\t':
			out = append(out, '\\', 't')
		case c < ' ':
			out = append(out, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		default:
			out = append(out, c)
		}
	}
	return append(out, '"'), nil
}

// cutMember cuts one member out of a map, so that no decoder copies a large value, and
// limits the size of the rest, in which nil replaces the member. The bytes have passed
// [checkMsgpack]. raw is nil if there is no such member; a second one is an error.
func cutMember(b []byte, member string) (rest, raw []byte, err error) {
	w := walker{b: b}
	h, err := w.head()
	if err != nil || h.kind != kindMap {
		return b, nil, err // the decoder returns an error
	}
	begin, end, inside := 0, 0, 0
	for range h.n {
		key, err := w.head()
		if err != nil {
			return nil, nil, err
		}
		isIt := false
		switch key.kind {
		case kindStr, kindBin, kindExt:
			isIt = key.kind == kindStr && string(b[w.at:w.at+key.n]) == member
			w.at += key.n
		case kindArray, kindMap:
			return nil, nil, task.NewFieldError("", "use text as keys", "a key is not text")
		}
		from, before := w.at, w.values
		if err := w.value(1); err != nil {
			return nil, nil, err
		}
		w.values++ // the key
		if isIt {
			if end != 0 {
				return nil, nil, (&path{}).duplicate([]byte(member))
			}
			begin, end, inside = from, w.at, w.values-before
		}
	}
	if n := len(b) - (end - begin); n > maxRest {
		return nil, nil, task.NewFieldError("", "put your own data into the input, or send less", "it has %d bytes besides its %s, the limit is %d", n, member, maxRest)
	}
	if n := w.values - inside; n > maxValues {
		return nil, nil, task.NewFieldError("", "put your own data into the input, or send less", "it has %d values besides its %s, the limit is %d", n, member, maxValues)
	}
	if end == 0 {
		return b, nil, nil
	}
	rest = make([]byte, 0, len(b)-(end-begin)+1)
	rest = append(append(append(rest, b[:begin]...), 0xc0), b[end:]...)
	return rest, b[begin:end], nil
}
