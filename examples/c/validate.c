/* Asks the license agent about a token or a feature, as docs/protocol.md says. One file, one connection for each attempt.
 *
 *     validate TOKEN [SOCKET]              TOKEN "-" reads the token from standard input
 *     validate require:FEATURE [SOCKET]    without a token: does a license of this machine allow FEATURE?
 *     validate count:METER[:ID] [SOCKET]   counts one use of METER; ID, 32 hex digits, names it: repeat it with the same one
 *
 * Prints one line, its fields separated by tabs: "valid" or "invalid", the reason, expires_at ("-" if there is none),
 * then the features. A count prints "counted" or "not counted", the reason, the license ("-" if there is none) and the ID.
 * Exit status: 0 valid, 1 not valid, 2 wrong usage, 3 no answer, 4 error reply.
 */

#define _GNU_SOURCE /* struct ucred */

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <msgpack.h>
#include <poll.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { PROTOCOL_VERSION = 1, NONCE_BYTES = 16, MAX_TOKEN_CHARS = 16 * 1024, MAX_FRAME_BYTES = 64 * 1024, MAX_ENTRIES = 1024 };
enum { DEADLINE_MS = 2000, FIRST_PAUSE_MS = 10, LONGEST_PAUSE_MS = 250 };
enum { RATE_LIMITED = 8, SHUTTING_DOWN = 11, TIMED_OUT = 12, UNAVAILABLE = 15 };
enum { EXIT_VALID = 0, EXIT_INVALID = 1, EXIT_USAGE = 2, EXIT_NO_ANSWER = 3, EXIT_REFUSED = 4, TRY_AGAIN = -1 };

static const char require_prefix[] = "require:", count_prefix[] = "count:"; /* no token has a colon */

/* About a token, a feature or the use of a meter: the other two are NULL. */
struct question {
    const char *token, *feature, *meter;
    char count_id[NONCE_BYTES]; /* the same in each attempt, so that the use is counted once */
};

static char why[600] = "nothing was tried";

static int outcome(int status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    return status;
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static bool wait_for(int fd, short events, int64_t ends)
{
    struct pollfd one = {.fd = fd, .events = events};
    int64_t left = ends - now_ms();
    return left > 0 && (poll(&one, 1, (int)left) > 0 || errno == EINTR);
}

static bool random_bytes(void *into, size_t size)
{
    return getrandom(into, size, 0) == (ssize_t)size; /* up to 256 bytes come whole */
}

/* Who is at the other end */

static bool trusted(uid_t uid)
{
    struct passwd *agent = getpwnam("license-agent");
    return uid == 0 || uid == geteuid() || (agent != NULL && uid == agent->pw_uid);
}

static bool is_the_agent(int fd, const char *path)
{
    char copy[sizeof((struct sockaddr_un *)0)->sun_path];
    struct stat info;
    struct ucred peer;
    socklen_t size = sizeof peer;
    strcpy(copy, path); /* its length was checked */
    if (stat(dirname(copy), &info) != 0 || !trusted(info.st_uid) || (info.st_mode & (S_IWGRP | S_IWOTH)) != 0)
        return false;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && trusted(peer.uid);
}

/* Frames */

static bool send_all(int fd, const char *data, size_t size, int64_t ends)
{
    while (size > 0) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent > 0) {
            data += sent;
            size -= (size_t)sent;
        } else if (errno == EPIPE || errno == ECONNRESET) {
            return true; /* the agent may have said why before it closed: the reply is read all the same */
        } else if (errno != EINTR && (errno != EAGAIN || !wait_for(fd, POLLOUT, ends))) {
            return false;
        }
    }
    return true;
}

static bool receive_all(int fd, void *into, size_t size, int64_t ends)
{
    char *place = into;
    while (size > 0) {
        ssize_t got = recv(fd, place, size, 0);
        if (got > 0) {
            place += got;
            size -= (size_t)got;
        } else if (got == 0 || (errno != EINTR && (errno != EAGAIN || !wait_for(fd, POLLIN, ends)))) {
            return false;
        }
    }
    return true;
}

static void pack_text(msgpack_packer *packer, const char *text)
{
    msgpack_pack_str(packer, strlen(text));
    msgpack_pack_str_body(packer, text, strlen(text));
}

static void pack_bytes(msgpack_packer *packer, const char *name, const char bytes[NONCE_BYTES])
{
    pack_text(packer, name);
    msgpack_pack_bin(packer, NONCE_BYTES);
    msgpack_pack_bin_body(packer, bytes, NONCE_BYTES);
}

static bool send_request(int fd, uint64_t id, struct question asked, const char nonce[NONCE_BYTES], int64_t ends)
{
    msgpack_sbuffer buffer;
    msgpack_packer packer;
    msgpack_sbuffer_init(&buffer);
    msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
    msgpack_sbuffer_write(&buffer, "\0\0\0\0", 4); /* the length goes here */
    msgpack_pack_map(&packer, asked.token != NULL ? 5 : 6);
    pack_text(&packer, "v");
    msgpack_pack_int(&packer, PROTOCOL_VERSION);
    pack_text(&packer, "id");
    msgpack_pack_uint64(&packer, id);
    pack_text(&packer, "op");
    if (asked.token != NULL) {
        pack_text(&packer, "validate_license");
        pack_text(&packer, "token");
        pack_text(&packer, asked.token);
    } else if (asked.meter != NULL) {
        pack_text(&packer, "count_usage");
        pack_text(&packer, "meter");
        pack_text(&packer, asked.meter);
        pack_text(&packer, "amount");
        msgpack_pack_int(&packer, 1);
    } else {
        pack_text(&packer, "require");
        pack_text(&packer, "feature");
        pack_text(&packer, asked.feature);
        pack_text(&packer, "product"); /* the product that the license must be for; nil is any */
        msgpack_pack_nil(&packer);
    }
    if (asked.meter != NULL)
        pack_bytes(&packer, "count_id", asked.count_id);
    else
        pack_bytes(&packer, "nonce", nonce);
    size_t length = buffer.size - 4;
    for (int i = 0; i < 4; i++)
        buffer.data[i] = (char)(length >> (24 - 8 * i));
    bool sent = send_all(fd, buffer.data, buffer.size, ends);
    msgpack_sbuffer_destroy(&buffer);
    return sent;
}

/* Replies */

static bool same_text(const msgpack_object *object, const char *text)
{
    return object->type == MSGPACK_OBJECT_STR && object->via.str.size == strlen(text)
        && memcmp(object->via.str.ptr, text, object->via.str.size) == 0;
}

/* No extension types; keys are text, each at most once; at every depth (the library limits that). */
static bool well_formed(const msgpack_object *object)
{
    if (object->type == MSGPACK_OBJECT_ARRAY) {
        for (uint32_t i = 0; i < object->via.array.size; i++)
            if (!well_formed(&object->via.array.ptr[i]))
                return false;
    } else if (object->type == MSGPACK_OBJECT_MAP) {
        const msgpack_object_map *map = &object->via.map;
        if (map->size > MAX_ENTRIES)
            return false;
        for (uint32_t i = 0; i < map->size; i++) {
            if (map->ptr[i].key.type != MSGPACK_OBJECT_STR || !well_formed(&map->ptr[i].val))
                return false;
            for (uint32_t j = 0; j < i; j++)
                if (msgpack_object_equal(map->ptr[i].key, map->ptr[j].key))
                    return false;
        }
    }
    return object->type != MSGPACK_OBJECT_EXT;
}

/* The value under a key, or NULL. Unknown keys are passed over: a newer agent may send some. */
static const msgpack_object *member(const msgpack_object *map, const char *name, msgpack_object_type type)
{
    for (uint32_t i = 0; i < map->via.map.size; i++)
        if (same_text(&map->via.map.ptr[i].key, name))
            return map->via.map.ptr[i].val.type == type ? &map->via.map.ptr[i].val : NULL;
    return NULL;
}

static bool has_integer(const msgpack_object *map, const char *name, uint64_t value)
{
    const msgpack_object *found = member(map, name, MSGPACK_OBJECT_POSITIVE_INTEGER);
    return found != NULL && found->via.u64 == value;
}

/* The flags are there, and the reason of a token is one of the list. A machine's licenses may get others, which newer agents
 * have: not valid. */
static bool complete(const msgpack_object *reply, const msgpack_object *reason, bool of_token)
{
    static const char *const reasons[] = {"ok", "expired", "not_yet_valid", "malformed", "unknown_secret", "secret_invalidated",
                                          "bad_signature", "wrong_audience", "revoked", "degraded_expired",
                                          "revocations_stale"};
    static const char *const flags[] = {"degraded", "clock_suspect", "reissue_due", "refreshed"};
    bool known = !of_token;
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++)
        known = known || same_text(reason, reasons[i]);
    for (size_t i = 0; i < (of_token ? sizeof flags / sizeof *flags : 2); i++)
        known = known && member(reply, flags[i], MSGPACK_OBJECT_BOOLEAN) != NULL;
    return known;
}

static int read_error(const msgpack_object *error)
{
    const msgpack_object *code = member(error, "code", MSGPACK_OBJECT_POSITIVE_INTEGER);
    const msgpack_object *text = member(error, "text", MSGPACK_OBJECT_STR);
    uint64_t number = code == NULL ? 1 : code->via.u64;
    bool again = number == RATE_LIMITED || number == SHUTTING_DOWN || number == TIMED_OUT || number == UNAVAILABLE;
    return outcome(again ? TRY_AGAIN : EXIT_REFUSED, "error %llu: %.*s", (unsigned long long)number,
                   text == NULL ? 0 : (int)text->via.str.size, text == NULL ? "" : text->via.str.ptr);
}

static int read_count(const msgpack_object *reply, struct question asked)
{
    const msgpack_object *counted = member(reply, "counted", MSGPACK_OBJECT_BOOLEAN);
    const msgpack_object *reason = member(reply, "reason", MSGPACK_OBJECT_STR);
    const msgpack_object *license = member(reply, "license", MSGPACK_OBJECT_STR);
    if (counted == NULL || reason == NULL || member(reply, "repeated", MSGPACK_OBJECT_BOOLEAN) == NULL
        || counted->via.boolean != same_text(reason, "ok") || (license == NULL && member(reply, "license", MSGPACK_OBJECT_NIL) == NULL))
        return outcome(EXIT_REFUSED, "the reply is invalid");
    printf("%s\t%.*s\t", counted->via.boolean ? "counted" : "not counted", (int)reason->via.str.size, reason->via.str.ptr);
    printf("%.*s\t", license == NULL ? 1 : (int)license->via.str.size, license == NULL ? "-" : license->via.str.ptr);
    for (int i = 0; i < NONCE_BYTES; i++)
        printf("%02x", (unsigned char)asked.count_id[i]);
    printf("\n");
    return counted->via.boolean ? EXIT_VALID : EXIT_INVALID;
}

static int read_verdict(const msgpack_object *reply, uint64_t id, struct question asked, const char nonce[NONCE_BYTES])
{
    const msgpack_object *error = member(reply, "error", MSGPACK_OBJECT_MAP);
    if (error != NULL)
        return read_error(error);
    const msgpack_object *echo = member(reply, asked.meter != NULL ? "count_id" : "nonce", MSGPACK_OBJECT_BIN);
    const char *sent = asked.meter != NULL ? asked.count_id : nonce;
    if (!has_integer(reply, "v", PROTOCOL_VERSION) || !has_integer(reply, "id", id) || echo == NULL
        || echo->via.bin.size != NONCE_BYTES || memcmp(echo->via.bin.ptr, sent, NONCE_BYTES) != 0)
        return outcome(EXIT_REFUSED, "the reply answers another request");
    if (asked.meter != NULL)
        return read_count(reply, asked);
    const msgpack_object *valid = member(reply, "valid", MSGPACK_OBJECT_BOOLEAN);
    const msgpack_object *reason = member(reply, "reason", MSGPACK_OBJECT_STR);
    const msgpack_object *expires = member(reply, "expires_at", MSGPACK_OBJECT_POSITIVE_INTEGER);
    const msgpack_object *features = member(reply, "features", MSGPACK_OBJECT_ARRAY);
    if (valid == NULL || reason == NULL || features == NULL || valid->via.boolean != same_text(reason, "ok")
        || !complete(reply, reason, asked.token != NULL) || (expires == NULL && member(reply, "expires_at", MSGPACK_OBJECT_NIL) == NULL))
        return outcome(EXIT_REFUSED, "the reply is invalid");
    bool allowed = asked.token != NULL || !valid->via.boolean;
    for (uint32_t i = 0; i < features->via.array.size; i++) {
        if (features->via.array.ptr[i].type != MSGPACK_OBJECT_STR)
            return outcome(EXIT_REFUSED, "the reply is invalid");
        allowed = allowed || (member(reply, "license", MSGPACK_OBJECT_STR) && same_text(&features->via.array.ptr[i], asked.feature));
    }
    if (!allowed)
        return outcome(EXIT_REFUSED, "the reply is invalid: no license allows the feature");
    printf("%s\t%.*s\t", valid->via.boolean ? "valid" : "invalid", (int)reason->via.str.size, reason->via.str.ptr);
    if (expires == NULL)
        printf("-");
    else
        printf("%llu", (unsigned long long)expires->via.u64);
    for (uint32_t i = 0; i < features->via.array.size; i++)
        printf("\t%.*s", (int)features->via.array.ptr[i].via.str.size, features->via.array.ptr[i].via.str.ptr);
    printf("\n");
    return valid->via.boolean ? EXIT_VALID : EXIT_INVALID;
}

static int receive_verdict(int fd, uint64_t id, struct question asked, const char nonce[NONCE_BYTES], int64_t ends)
{
    unsigned char header[4];
    if (!receive_all(fd, header, sizeof header, ends))
        return outcome(TRY_AGAIN, "no reply came");
    size_t length = (size_t)header[0] << 24 | (size_t)header[1] << 16 | (size_t)header[2] << 8 | header[3];
    if (length == 0 || length > MAX_FRAME_BYTES)
        return outcome(EXIT_REFUSED, "the reply says that it has %zu bytes", length);
    char *body = malloc(length);
    if (body == NULL || !receive_all(fd, body, length, ends)) {
        free(body);
        return outcome(TRY_AGAIN, "the reply was cut short");
    }
    msgpack_unpacked unpacked;
    msgpack_unpacked_init(&unpacked);
    size_t used = 0;
    int status;
    if (msgpack_unpack_next(&unpacked, body, length, &used) != MSGPACK_UNPACK_SUCCESS || used != length
        || unpacked.data.type != MSGPACK_OBJECT_MAP || !well_formed(&unpacked.data))
        status = outcome(EXIT_REFUSED, "the reply is not one MessagePack map");
    else
        status = read_verdict(&unpacked.data, id, asked, nonce);
    msgpack_unpacked_destroy(&unpacked);
    free(body);
    return status;
}

/* Attempts */

static int attempt(const struct sockaddr_un *address, uint64_t id, struct question asked, int64_t ends)
{
    char nonce[NONCE_BYTES]; /* a fresh one for each attempt: the agent takes none twice */
    if (!random_bytes(nonce, sizeof nonce))
        return outcome(EXIT_NO_ANSWER, "no random bytes: %s", strerror(errno));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return outcome(TRY_AGAIN, "socket: %s", strerror(errno));
    int status;
    if (connect(fd, (const struct sockaddr *)address, sizeof *address) != 0)
        status = outcome(TRY_AGAIN, "%s: %s", address->sun_path, strerror(errno));
    else if (!is_the_agent(fd, address->sun_path))
        status = outcome(EXIT_NO_ANSWER, "%s is served, or its directory owned or writable, by others", address->sun_path);
    else if (!send_request(fd, id, asked, nonce, ends))
        status = outcome(TRY_AGAIN, "the request was not taken");
    else
        status = receive_verdict(fd, id, asked, nonce, ends);
    close(fd);
    return status;
}

static int ask(const struct sockaddr_un *address, struct question asked)
{
    int64_t ends = now_ms() + DEADLINE_MS, longest = FIRST_PAUSE_MS;
    for (uint64_t id = 1;; id++) {
        int status = attempt(address, id, asked, ends);
        if (status != TRY_AGAIN)
            return status;
        uint16_t jitter = 0;
        random_bytes(&jitter, sizeof jitter);
        int64_t pause = longest / 2 + longest * jitter / 65536 / 2;
        if (now_ms() + pause >= ends)
            return EXIT_NO_ANSWER;
        nanosleep(&(struct timespec){.tv_nsec = pause * 1000000}, NULL);
        longest = longest * 2 < LONGEST_PAUSE_MS ? longest * 2 : LONGEST_PAUSE_MS;
    }
}

/* Takes a byte order mark and the white space around a token away; whether the protocol carries the rest. */
static bool sendable(char *token, size_t length)
{
    static const char blanks[] = " \t\r\n\v\f";
    size_t start = length >= 3 && memcmp(token, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    while (start < length && token[start] != '\0' && strchr(blanks, token[start]) != NULL)
        start++;
    while (length > start && token[length - 1] != '\0' && strchr(blanks, token[length - 1]) != NULL)
        length--;
    memmove(token, token + start, length - start);
    length -= start;
    token[length] = '\0';
    for (size_t i = 0; i < length; i++)
        if (token[i] == '\0' || (unsigned char)token[i] > 127)
            return false;
    return length > 0 && length <= MAX_TOKEN_CHARS;
}

/* A count of one use: METER, or METER:ID with the ID of an earlier attempt. */
static bool countable(char *text, struct question *asked)
{
    char *id = strchr(text, ':');
    *asked = (struct question){.meter = text};
    if (id == NULL)
        return text[0] != '\0' && random_bytes(asked->count_id, NONCE_BYTES);
    *id++ = '\0';
    if (strlen(id) != 2 * NONCE_BYTES || strspn(id, "0123456789abcdef") != 2 * NONCE_BYTES)
        return false;
    for (int i = 0; i < NONCE_BYTES; i++) {
        char digits[3] = {id[2 * i], id[2 * i + 1], '\0'};
        asked->count_id[i] = (char)strtoul(digits, NULL, 16);
    }
    return text[0] != '\0';
}

int main(int count, char **arguments)
{
    static char token[MAX_TOKEN_CHARS + 64];
    const char *from_env = getenv("LICENSE_AGENT_SOCKET");
    const char *path = count > 2 ? arguments[2] : from_env != NULL ? from_env : "/run/license-agent/pos.sock";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (count < 2 || count > 3 || strlen(path) >= sizeof address.sun_path) {
        fprintf(stderr, "usage: validate TOKEN|-|require:FEATURE|count:METER[:ID] [SOCKET]\n");
        return EXIT_USAGE;
    }
    strcpy(address.sun_path, path);
    struct question asked = {.token = token};
    bool from_stdin = strcmp(arguments[1], "-") == 0;
    size_t length = from_stdin ? fread(token, 1, sizeof token - 1, stdin)
                               : (size_t)snprintf(token, sizeof token, "%s", arguments[1]);
    if (strncmp(arguments[1], require_prefix, strlen(require_prefix)) == 0) {
        asked = (struct question){.feature = arguments[1] + strlen(require_prefix)};
    } else if (strncmp(arguments[1], count_prefix, strlen(count_prefix)) == 0) {
        if (!countable(arguments[1] + strlen(count_prefix), &asked)) {
            fprintf(stderr, "validate: write count:METER or count:METER:ID, with an ID of %d hex digits\n", 2 * NONCE_BYTES);
            return EXIT_USAGE;
        }
    } else if (!sendable(token, length < sizeof token ? length : sizeof token - 1)) {
        if (from_stdin) {
            puts("invalid\tmalformed\t-"); /* what a file holds is no wrong usage */
            return EXIT_INVALID;
        }
        fprintf(stderr, "validate: a token has 1 to %d ASCII characters\n", MAX_TOKEN_CHARS);
        return EXIT_USAGE;
    }
    int status = ask(&address, asked);
    if (status != EXIT_VALID && status != EXIT_INVALID)
        fprintf(stderr, "validate: %s\n", why);
    return fflush(stdout) == 0 ? status : EXIT_NO_ANSWER;
}
