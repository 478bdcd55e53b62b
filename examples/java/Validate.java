// Asks the license agent about a token or a feature, as docs/protocol.md says. Java 17 or later, standard library only.
//
//     java Validate.java TOKEN [SOCKET]              TOKEN "-" reads the token from standard input
//     java Validate.java require:FEATURE [SOCKET]    without a token: does a license of this machine allow FEATURE?
//
// Prints one line, its fields separated by tabs: "valid" or "invalid", the reason, expires_at ("-" if there is none),
// then the features. Exit status: 0 valid, 1 not valid, 2 wrong usage, 3 no answer, 4 error reply.

import java.io.IOException;
import java.math.BigInteger;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.SocketChannel;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.FileSystems;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermission;
import java.nio.file.attribute.UserPrincipal;
import java.security.SecureRandom;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ThreadLocalRandom;
import jdk.net.ExtendedSocketOptions;

public final class Validate {
    static final int PROTOCOL_VERSION = 1, NONCE_BYTES = 16, MAX_TOKEN_CHARS = 16 * 1024, MAX_FRAME_BYTES = 64 * 1024, MAX_DEPTH = 16;
    static final long DEADLINE_MS = 2000, FIRST_PAUSE_MS = 10, LONGEST_PAUSE_MS = 250;
    static final Set<Long> RETRIED_CODES = Set.of(8L, 11L, 12L, 15L); // RATE_LIMITED, SHUTTING_DOWN, TIMED_OUT, UNAVAILABLE
    static final Set<String> REASONS = Set.of(
        "ok", "expired", "not_yet_valid", "malformed", "unknown_secret", "secret_invalidated",
        "bad_signature", "wrong_audience", "revoked", "degraded_expired", "revocations_stale");
    static final List<String> FLAGS = List.of("degraded", "clock_suspect", "reissue_due", "refreshed");
    static final List<String> FEATURE_FLAGS = List.of("degraded", "clock_suspect");
    static final String REQUIRE = "require:"; // no token has a colon
    static final int VALID = 0, INVALID = 1, USAGE = 2, NO_ANSWER = 3, REFUSED = 4;

    /** Ends the call with an exit status. */
    static final class Failed extends Exception {
        final int status;

        Failed(int status, String text) {
            super(text);
            this.status = status;
        }
    }

    /** Worth another attempt. */
    static final class TryAgain extends Exception {
        TryAgain(String text) {
            super(text);
        }
    }

    /** About a token or, where that is null, about a feature. */
    record Question(String token, String feature) {}

    record Verdict(boolean valid, String reason, Long expiresAt, List<String> features) {}

    static Failed invalidReply(String text) {
        return new Failed(REFUSED, "the reply is invalid: " + text);
    }

    // MessagePack: as much of it as requests and replies use. Integers are Long, and BigInteger above its range; byte strings are
    // byte[]; null is null.

    static byte[] request(long id, Question asked, byte[] nonce) {
        boolean ofToken = asked.token() != null;
        ByteBuffer body = ByteBuffer.allocate(128 + 4 * (ofToken ? asked.token() : asked.feature()).length());
        body.position(4);
        body.put((byte) (ofToken ? 0x85 : 0x86));
        text(body, "v").put((byte) PROTOCOL_VERSION);
        text(body, "id").put((byte) 0xcf).putLong(id);
        text(text(body, "op"), ofToken ? "validate_license" : "require");
        if (ofToken) {
            text(text(body, "token"), asked.token());
        } else {
            text(text(body, "feature"), asked.feature());
            text(body, "product").put((byte) 0xc0); // the product that the license must be for; nil is any
        }
        text(body, "nonce").put((byte) 0xc4).put((byte) nonce.length).put(nonce);
        body.putInt(0, body.position() - 4);
        return Arrays.copyOf(body.array(), body.position());
    }

    static ByteBuffer text(ByteBuffer into, String text) {
        byte[] data = text.getBytes(StandardCharsets.UTF_8);
        return into.put((byte) 0xda).putShort((short) data.length).put(data);
    }

    record Decoder(ByteBuffer data) {
        Object whole() throws Failed {
            Object value = value(0);
            if (data.hasRemaining()) throw invalidReply("something follows the message");
            return value;
        }

        private byte[] take(long size) throws Failed {
            if (size > data.remaining()) throw invalidReply("it is cut short");
            byte[] bytes = new byte[(int) size];
            data.get(bytes);
            return bytes;
        }

        private Object unsigned(int size) throws Failed {
            BigInteger number = new BigInteger(1, take(size));
            return number.bitLength() < 64 ? (Object) number.longValue() : number;
        }

        private long length(int size) throws Failed {
            return new BigInteger(1, take(size)).longValue();
        }

        private Object value(int depth) throws Failed {
            if (depth > MAX_DEPTH) throw invalidReply("it is nested too deeply");
            int first = take(1)[0] & 0xff;
            if (first < 0x80) return (long) first;
            if (first < 0x90) return map(first & 0x0f, depth);
            if (first < 0xa0) return array(first & 0x0f, depth);
            if (first < 0xc0) return string(first & 0x1f);
            if (first >= 0xe0) return (long) (byte) first;
            return switch (first) {
                case 0xc0 -> null;
                case 0xc2 -> false;
                case 0xc3 -> true;
                case 0xc4, 0xc5, 0xc6 -> take(length(1 << (first - 0xc4)));
                case 0xca, 0xcb -> Double.valueOf(first == 0xca ? ByteBuffer.wrap(take(4)).getFloat() : ByteBuffer.wrap(take(8)).getDouble());
                case 0xcc, 0xcd, 0xce, 0xcf -> unsigned(1 << (first - 0xcc));
                case 0xd0, 0xd1, 0xd2, 0xd3 -> new BigInteger(take(1 << (first - 0xd0))).longValue();
                case 0xd9, 0xda, 0xdb -> string(length(1 << (first - 0xd9)));
                case 0xdc, 0xdd -> array(length(first == 0xdc ? 2 : 4), depth);
                case 0xde, 0xdf -> map(length(first == 0xde ? 2 : 4), depth);
                default -> throw invalidReply("it holds an extension type");
            };
        }

        private String string(long size) throws Failed {
            try {
                return StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(take(size))).toString();
            } catch (CharacterCodingException error) {
                throw invalidReply("a text is not UTF-8");
            }
        }

        private List<Object> array(long count, int depth) throws Failed {
            List<Object> items = new ArrayList<>();
            for (long i = 0; i < count; i++) items.add(value(depth + 1));
            return items;
        }

        private Map<String, Object> map(long count, int depth) throws Failed {
            Map<String, Object> entries = new LinkedHashMap<>();
            for (long i = 0; i < count; i++) {
                if (!(value(depth + 1) instanceof String key) || entries.containsKey(key)) {
                    throw invalidReply("a key comes twice, or is not a text");
                }
                entries.put(key, value(depth + 1));
            }
            return entries;
        }
    }

    // Who is at the other end: root, the agent's user or our own must own the socket's directory and serve the socket.

    static boolean trusted(UserPrincipal user) throws IOException {
        if (user.equals(Files.getOwner(Path.of("/proc/self")))) return true;
        for (String name : List.of("root", "license-agent")) {
            try {
                if (user.equals(FileSystems.getDefault().getUserPrincipalLookupService().lookupPrincipalByName(name))) return true;
            } catch (IOException error) {
                // This machine has no such user.
            }
        }
        return false;
    }

    static void checkDirectory(Path socket) throws Failed, TryAgain {
        Path directory = socket.toAbsolutePath().getParent();
        try {
            var modes = Files.getPosixFilePermissions(directory);
            boolean open = modes.contains(PosixFilePermission.GROUP_WRITE) || modes.contains(PosixFilePermission.OTHERS_WRITE);
            if (open || !trusted(Files.getOwner(directory))) {
                throw new Failed(NO_ANSWER, directory + " belongs to others, or others may write to it");
            }
        } catch (IOException error) {
            throw new TryAgain(directory + " cannot be examined: " + error.getMessage());
        }
    }

    // One attempt

    static long nowMs() {
        return System.nanoTime() / 1_000_000;
    }

    static void await(Selector selector, SocketChannel channel, int operation, long ends) throws IOException, TryAgain {
        channel.register(selector, operation);
        long left = ends - nowMs();
        if (left <= 0 || selector.select(left) == 0) throw new TryAgain("no reply in time");
        selector.selectedKeys().clear();
    }

    static byte[] exchange(Path socket, byte[] frame, long ends) throws IOException, Failed, TryAgain {
        try (SocketChannel channel = SocketChannel.open(UnixDomainSocketAddress.of(socket)); Selector selector = Selector.open()) {
            if (!trusted(channel.getOption(ExtendedSocketOptions.SO_PEERCRED).user())) {
                throw new Failed(NO_ANSWER, socket + " is not served by root or the agent");
            }
            channel.configureBlocking(false);
            ByteBuffer out = ByteBuffer.wrap(frame);
            try {
                while (out.hasRemaining()) {
                    if (channel.write(out) == 0) await(selector, channel, SelectionKey.OP_WRITE, ends);
                }
            } catch (IOException error) {
                // The agent may have said why before it closed: the reply is read all the same.
            }
            ByteBuffer in = ByteBuffer.allocate(4 + MAX_FRAME_BYTES);
            while (true) {
                if (in.position() >= 4) {
                    int length = in.getInt(0);
                    if (length <= 0 || length > MAX_FRAME_BYTES) throw invalidReply("it says that it has " + length + " bytes");
                    if (in.position() >= 4 + length) return Arrays.copyOfRange(in.array(), 4, 4 + length);
                }
                int got = channel.read(in);
                if (got < 0) throw new TryAgain("the agent closed the connection");
                if (got == 0) await(selector, channel, SelectionKey.OP_READ, ends);
            }
        }
    }

    static Verdict verdict(Object whole, long id, Question asked, byte[] nonce) throws Failed, TryAgain {
        if (!(whole instanceof Map<?, ?> reply)) throw invalidReply("it is not a map");
        if (reply.get("error") instanceof Map<?, ?> error) {
            String text = "error " + error.get("code") + ": " + error.get("text");
            if (RETRIED_CODES.contains(error.get("code"))) throw new TryAgain(text);
            throw new Failed(REFUSED, text);
        }
        boolean echoed = reply.get("nonce") instanceof byte[] echo && Arrays.equals(echo, nonce);
        if (!Long.valueOf(PROTOCOL_VERSION).equals(reply.get("v")) || !Long.valueOf(id).equals(reply.get("id")) || !echoed) {
            throw invalidReply("it answers another request");
        }
        if (!(reply.get("valid") instanceof Boolean valid) || !(reply.get("reason") instanceof String reason)
            // A token gets one of the list. A machine's licenses may get others, which newer agents have: not valid.
            || (asked.token() != null && !REASONS.contains(reason)) || valid != reason.equals("ok")) {
            throw invalidReply("valid and reason");
        }
        for (String flag : asked.token() != null ? FLAGS : FEATURE_FLAGS) {
            if (!(reply.get(flag) instanceof Boolean)) throw invalidReply("a flag is missing");
        }
        Object expires = reply.get("expires_at");
        if (expires != null && !(expires instanceof Long)) throw invalidReply("expires_at");
        if (!(reply.get("features") instanceof List<?> list)) throw invalidReply("features");
        List<String> features = new ArrayList<>();
        for (Object name : list) {
            if (!(name instanceof String text)) throw invalidReply("features");
            features.add(text);
        }
        boolean allowed = features.contains(asked.feature()) && reply.get("license") instanceof String;
        if (asked.token() == null && valid && !allowed) throw invalidReply("no license allows the feature");
        return new Verdict(valid, reason, (Long) expires, features);
    }

    // All attempts

    static Verdict ask(Path socket, Question asked) throws Failed, InterruptedException {
        SecureRandom random = new SecureRandom();
        long ends = nowMs() + DEADLINE_MS;
        for (long id = 1, longest = FIRST_PAUSE_MS;; id++, longest = Math.min(longest * 2, LONGEST_PAUSE_MS)) {
            String why;
            try {
                checkDirectory(socket);
                byte[] nonce = new byte[NONCE_BYTES]; // a fresh one for each attempt: the agent takes none twice
                random.nextBytes(nonce);
                byte[] reply = exchange(socket, request(id, asked, nonce), ends);
                return verdict(new Decoder(ByteBuffer.wrap(reply)).whole(), id, asked, nonce);
            } catch (IOException | TryAgain error) {
                why = String.valueOf(error.getMessage());
            }
            long pause = (long) (longest * ThreadLocalRandom.current().nextDouble(0.5, 1));
            if (nowMs() + pause >= ends) throw new Failed(NO_ANSWER, why);
            Thread.sleep(pause);
        }
    }

    static final Set<Character> SPACE = Set.of(' ', '\t', '\r', '\n', '\f', '\u000b');

    /** What standard input holds, or the argument itself; a byte order mark and white space around it do not belong to it. */
    static String tokenFrom(String given) throws Failed {
        String token = given;
        try {
            if (given.equals("-")) token = new String(System.in.readNBytes(2 * MAX_TOKEN_CHARS), StandardCharsets.UTF_8);
        } catch (IOException error) {
            throw new Failed(USAGE, "standard input cannot be read: " + error.getMessage());
        }
        int start = token.startsWith("\ufeff") ? 1 : 0, end = token.length();
        while (start < end && SPACE.contains(token.charAt(start))) start++;
        while (start < end && SPACE.contains(token.charAt(end - 1))) end--;
        return token.substring(start, end);
    }

    static boolean mayBeSent(String token) {
        return !token.isEmpty() && token.length() <= MAX_TOKEN_CHARS && token.chars().allMatch(c -> c < 128);
    }

    public static void main(String[] arguments) throws InterruptedException {
        int status;
        try {
            if (arguments.length < 1) throw new Failed(USAGE, "usage: java Validate.java TOKEN|-|require:FEATURE [SOCKET]");
            String named = System.getenv().getOrDefault("LICENSE_AGENT_SOCKET", "/run/license-agent/pos.sock");
            Path socket = Path.of(arguments.length > 1 ? arguments[1] : named);
            String token = tokenFrom(arguments[0]);
            Verdict verdict = new Verdict(false, "malformed", null, List.of()); // what a file holds is no wrong usage
            if (arguments[0].startsWith(REQUIRE)) {
                verdict = ask(socket, new Question(null, arguments[0].substring(REQUIRE.length())));
            } else if (mayBeSent(token)) {
                verdict = ask(socket, new Question(token, null));
            } else if (!arguments[0].equals("-")) {
                throw new Failed(USAGE, "a token has 1 to " + MAX_TOKEN_CHARS + " ASCII characters");
            }
            List<String> fields = new ArrayList<>(List.of(verdict.valid() ? "valid" : "invalid", verdict.reason()));
            fields.add(verdict.expiresAt() == null ? "-" : verdict.expiresAt().toString());
            fields.addAll(verdict.features());
            System.out.println(String.join("\t", fields));
            status = verdict.valid() ? VALID : INVALID;
        } catch (Failed error) {
            System.err.println("validate: " + error.getMessage());
            status = error.status;
        }
        System.exit(status);
    }
}
