// Asks the license agent about a token or a feature, as docs/protocol.md says. Go 1.19 or later, standard library only.
//
//	go run validate.go TOKEN [SOCKET]              TOKEN "-" reads the token from standard input
//	go run validate.go require:FEATURE [SOCKET]    without a token: does a license of this machine allow FEATURE?
//
// Prints one line, its fields separated by tabs: "valid" or "invalid", the reason, expires_at ("-" if there is none),
// then the features. Exit status: 0 valid, 1 not valid, 2 wrong usage, 3 no answer, 4 error reply.
package main

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"
)

const (
	protocolVersion = 1
	nonceBytes      = 16
	maxTokenChars   = 16 * 1024
	maxFrameBytes   = 64 * 1024
	maxDepth        = 16
	deadline        = 2 * time.Second
	firstPause      = 10 * time.Millisecond
	longestPause    = 250 * time.Millisecond
	requirePrefix   = "require:" // no token has a colon
)

const (
	exitValid = iota
	exitInvalid
	exitUsage
	exitNoAnswer
	exitRefused
)

var (
	retriedCodes = map[uint64]bool{8: true, 11: true, 12: true, 15: true} // RATE_LIMITED, SHUTTING_DOWN, TIMED_OUT, UNAVAILABLE
	reasons      = map[string]bool{
		"ok": true, "expired": true, "not_yet_valid": true, "malformed": true, "unknown_secret": true, "secret_invalidated": true,
		"bad_signature": true, "wrong_audience": true, "revoked": true, "degraded_expired": true, "revocations_stale": true,
	}
	flags        = []string{"degraded", "clock_suspect", "reissue_due", "refreshed"}
	featureFlags = []string{"degraded", "clock_suspect"}
)

// failed ends the call with an exit status.
type failed struct {
	status int
	text   string
}

func (f failed) Error() string { return f.text }

func invalidReply(text string) error { return failed{exitRefused, "the reply is invalid: " + text} }

// question is about a token or, if that is empty, about a feature.
type question struct{ token, feature string }

type verdict struct {
	valid    bool
	reason   string
	expires  *int64
	features []string
}

// MessagePack: as much of it as requests and replies use. Integers are uint64, or int64 below zero.

func request(id uint64, asked question, nonce []byte) []byte {
	body := []byte{0x85}
	if asked.token == "" {
		body[0]++
	}
	text := func(text string) {
		body = append(body, 0xda, byte(len(text)>>8), byte(len(text)))
		body = append(body, text...)
	}
	text("v")
	body = append(body, protocolVersion)
	text("id")
	body = binary.BigEndian.AppendUint64(append(body, 0xcf), id)
	text("op")
	if asked.token != "" {
		text("validate_license")
		text("token")
		text(asked.token)
	} else {
		text("require")
		text("feature")
		text(asked.feature)
		text("product") // the product that the license must be for; nil is any
		body = append(body, 0xc0)
	}
	text("nonce")
	body = append(append(body, 0xc4, byte(len(nonce))), nonce...)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

type decoder struct{ data []byte }

func (d *decoder) take(size uint64) ([]byte, error) {
	if size > uint64(len(d.data)) {
		return nil, invalidReply("it is cut short")
	}
	taken := d.data[:size]
	d.data = d.data[size:]
	return taken, nil
}

func (d *decoder) unsigned(size uint64) (uint64, error) {
	taken, err := d.take(size)
	number := uint64(0)
	for _, digit := range taken {
		number = number<<8 | uint64(digit)
	}
	return number, err
}

func (d *decoder) value(depth int) (any, error) {
	if depth > maxDepth {
		return nil, invalidReply("it is nested too deeply")
	}
	head, err := d.unsigned(1)
	if err != nil {
		return nil, err
	}
	sized := func(base, first uint64, read func(uint64, int) (any, error)) (any, error) {
		size, err := d.unsigned(first << (head - base))
		if err != nil {
			return nil, err
		}
		return read(size, depth)
	}
	switch {
	case head < 0x80:
		return head, nil
	case head < 0x90:
		return d.table(head&0x0f, depth)
	case head < 0xa0:
		return d.list(head&0x0f, depth)
	case head < 0xc0:
		return d.text(head&0x1f, depth)
	case head >= 0xe0:
		return int64(int8(head)), nil
	case head == 0xc0:
		return nil, nil
	case head == 0xc2 || head == 0xc3:
		return head == 0xc3, nil
	case head >= 0xc4 && head <= 0xc6:
		return sized(0xc4, 1, func(size uint64, _ int) (any, error) { return d.take(size) })
	case head == 0xca:
		bits, err := d.unsigned(4)
		return float64(math.Float32frombits(uint32(bits))), err
	case head == 0xcb:
		bits, err := d.unsigned(8)
		return math.Float64frombits(bits), err
	case head >= 0xcc && head <= 0xcf:
		return d.unsigned(1 << (head - 0xcc))
	case head >= 0xd0 && head <= 0xd3:
		size := uint64(1) << (head - 0xd0)
		number, err := d.unsigned(size)
		signed := int64(number<<(64-8*size)) >> (64 - 8*size)
		if signed < 0 {
			return signed, err
		}
		return uint64(signed), err
	case head >= 0xd9 && head <= 0xdb:
		return sized(0xd9, 1, d.text)
	case head == 0xdc || head == 0xdd:
		return sized(0xdc, 2, d.list)
	case head == 0xde || head == 0xdf:
		return sized(0xde, 2, d.table)
	}
	return nil, invalidReply("it holds an extension type")
}

func (d *decoder) text(size uint64, _ int) (any, error) {
	taken, err := d.take(size)
	if err == nil && !utf8.Valid(taken) {
		err = invalidReply("a text is not UTF-8")
	}
	return string(taken), err
}

func (d *decoder) list(count uint64, depth int) (any, error) {
	items := []any{}
	for ; count > 0; count-- {
		item, err := d.value(depth + 1)
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return items, nil
}

func (d *decoder) table(count uint64, depth int) (any, error) {
	entries := map[string]any{}
	for ; count > 0; count-- {
		first, err := d.value(depth + 1)
		if err != nil {
			return nil, err
		}
		key, isText := first.(string)
		if _, twice := entries[key]; twice || !isText {
			return nil, invalidReply("a key comes twice, or is not a text")
		}
		if entries[key], err = d.value(depth + 1); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// Who is at the other end: root, the agent's user or our own must own the socket's directory and serve the socket.

func trusted(uid uint32) bool {
	if uid == 0 || uid == uint32(os.Geteuid()) {
		return true
	}
	agent, err := user.Lookup("license-agent")
	return err == nil && agent.Uid == strconv.FormatUint(uint64(uid), 10)
}

func checkDirectory(path string) error {
	var info syscall.Stat_t
	directory := filepath.Dir(path)
	if err := syscall.Stat(directory, &info); err != nil {
		return fmt.Errorf("%s cannot be examined: %w", directory, err)
	}
	if !trusted(info.Uid) || info.Mode&0o022 != 0 {
		return failed{exitNoAnswer, directory + " belongs to others, or others may write to it"}
	}
	return nil
}

func checkPeer(connection *net.UnixConn, path string) error {
	raw, err := connection.SyscallConn()
	if err != nil {
		return err
	}
	var peer *syscall.Ucred
	var refused error
	if err := raw.Control(func(fd uintptr) {
		peer, refused = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if refused != nil || !trusted(peer.Uid) {
		return failed{exitNoAnswer, path + " is not served by root or the agent"}
	}
	return nil
}

// One attempt

func exchange(path string, frame []byte, ends time.Time) ([]byte, error) {
	connection, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	if err := connection.SetDeadline(ends); err != nil {
		return nil, err
	}
	if err := checkPeer(connection, path); err != nil {
		return nil, err
	}
	// The agent may have said why before it closed: the reply is read, whatever became of the write.
	_, _ = connection.Write(frame)
	head := make([]byte, 4)
	if _, err := io.ReadFull(connection, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head)
	if size == 0 || size > maxFrameBytes {
		return nil, invalidReply(fmt.Sprintf("it says that it has %d bytes", size))
	}
	body := make([]byte, size)
	_, err = io.ReadFull(connection, body)
	return body, err
}

func readVerdict(body []byte, id uint64, asked question, nonce []byte) (*verdict, error) {
	d := decoder{body}
	whole, err := d.value(0)
	if err != nil {
		return nil, err
	}
	reply, isMap := whole.(map[string]any)
	if !isMap || len(d.data) != 0 {
		return nil, invalidReply("it is not one map")
	}
	if refusal, isMap := reply["error"].(map[string]any); isMap {
		text := fmt.Sprintf("error %v: %v", refusal["code"], refusal["text"])
		if code, isNumber := refusal["code"].(uint64); isNumber && retriedCodes[code] {
			return nil, errors.New(text)
		}
		return nil, failed{exitRefused, text}
	}
	echo, _ := reply["nonce"].([]byte)
	if reply["v"] != uint64(protocolVersion) || reply["id"] != id || !bytes.Equal(echo, nonce) {
		return nil, invalidReply("it answers another request")
	}
	found := &verdict{}
	var hasValid, hasReason, hasFeatures bool
	found.valid, hasValid = reply["valid"].(bool)
	found.reason, hasReason = reply["reason"].(string)
	// A token gets one of the list. A machine's licenses may get others, which newer agents have: not valid.
	needed := flags
	if asked.token == "" {
		needed = featureFlags
	} else if !reasons[found.reason] {
		return nil, invalidReply("reason")
	}
	if !hasValid || !hasReason || found.valid != (found.reason == "ok") {
		return nil, invalidReply("valid and reason")
	}
	for _, flag := range needed {
		if _, isFlag := reply[flag].(bool); !isFlag {
			return nil, invalidReply("a flag is missing")
		}
	}
	if expires, there := reply["expires_at"]; !there {
		return nil, invalidReply("expires_at")
	} else if expires != nil {
		number, isNumber := expires.(uint64)
		if !isNumber || number > math.MaxInt64 {
			return nil, invalidReply("expires_at")
		}
		seconds := int64(number)
		found.expires = &seconds
	}
	var list []any
	if list, hasFeatures = reply["features"].([]any); !hasFeatures {
		return nil, invalidReply("features")
	}
	allowed := false
	for _, item := range list {
		name, isText := item.(string)
		if !isText {
			return nil, invalidReply("features")
		}
		allowed = allowed || name == asked.feature
		found.features = append(found.features, name)
	}
	_, hasLicense := reply["license"].(string)
	if asked.token == "" && found.valid && !(allowed && hasLicense) {
		return nil, invalidReply("no license allows the feature")
	}
	return found, nil
}

// All attempts

func attempt(path string, id uint64, asked question, ends time.Time) (*verdict, error) {
	if err := checkDirectory(path); err != nil {
		return nil, err
	}
	nonce := make([]byte, nonceBytes) // a fresh one for each attempt: the agent takes none twice
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	body, err := exchange(path, request(id, asked, nonce), ends)
	if err != nil {
		return nil, err
	}
	return readVerdict(body, id, asked, nonce)
}

func ask(path string, asked question) (*verdict, error) {
	ends, longest := time.Now().Add(deadline), firstPause
	for id := uint64(1); ; id++ {
		found, err := attempt(path, id, asked, ends)
		if err == nil || errors.As(err, &failed{}) {
			return found, err
		}
		jitter := make([]byte, 1)
		_, _ = rand.Read(jitter) // without it the pause is half as long
		pause := longest/2 + longest/2*time.Duration(jitter[0])/255
		if time.Now().Add(pause).After(ends) {
			return nil, failed{exitNoAnswer, err.Error()}
		}
		time.Sleep(pause)
		if longest *= 2; longest > longestPause {
			longest = longestPause
		}
	}
}

func mayBeSent(token string) bool {
	ascii := strings.IndexFunc(token, func(c rune) bool { return c >= utf8.RuneSelf }) < 0
	return token != "" && len(token) <= maxTokenChars && ascii
}

func run(arguments []string) (int, error) {
	if len(arguments) == 0 {
		return 0, failed{exitUsage, "usage: validate TOKEN|-|require:FEATURE [SOCKET]"}
	}
	token, path := arguments[0], os.Getenv("LICENSE_AGENT_SOCKET")
	if token == "-" {
		given, err := io.ReadAll(io.LimitReader(os.Stdin, 2*maxTokenChars))
		if err != nil {
			return 0, failed{exitUsage, "standard input cannot be read: " + err.Error()}
		}
		token = string(given)
	}
	if len(arguments) > 1 {
		path = arguments[1]
	} else if path == "" {
		path = "/run/license-agent/pos.sock"
	}
	// A byte order mark and white space around the token do not belong to it.
	token = strings.Trim(strings.TrimPrefix(token, "\ufeff"), " \t\r\n\v\f")
	asked, ofFeature := question{token: token}, strings.HasPrefix(arguments[0], requirePrefix)
	if ofFeature {
		asked = question{feature: strings.TrimPrefix(arguments[0], requirePrefix)}
	}
	found := &verdict{reason: "malformed"} // what a file holds is no wrong usage
	if ofFeature || mayBeSent(token) {
		var err error
		if found, err = ask(path, asked); err != nil {
			return 0, err
		}
	} else if arguments[0] != "-" {
		return 0, failed{exitUsage, fmt.Sprintf("a token has 1 to %d ASCII characters", maxTokenChars)}
	}
	fields, status := []string{"invalid", found.reason, "-"}, exitInvalid
	if found.valid {
		fields[0], status = "valid", exitValid
	}
	if found.expires != nil {
		fields[2] = strconv.FormatInt(*found.expires, 10)
	}
	fmt.Println(strings.Join(append(fields, found.features...), "\t"))
	return status, nil
}

func main() {
	status, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "validate: "+err.Error())
		status = exitNoAnswer
		var known failed
		if errors.As(err, &known) {
			status = known.status
		}
	}
	os.Exit(status)
}
