// Asks the license agent about a token or a feature, as docs/protocol.md says. C# 7; Mono 6.8 or .NET 6 or later, nothing else; Linux.
//
//     mcs Validate.cs && mono Validate.exe TOKEN [SOCKET]    TOKEN "-" reads the token from standard input
//     mono Validate.exe require:FEATURE [SOCKET]             without a token: does a license of this machine allow FEATURE?
//
// Prints one line, its fields separated by tabs: "valid" or "invalid", the reason, expires_at ("-" if there is none),
// then the features. Exit status: 0 valid, 1 not valid, 2 wrong usage, 3 no answer, 4 error reply.

using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.IO;
using System.Linq;
using System.Net;
using System.Net.Sockets;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text;
using System.Threading;

static class Validate
{
    const int ProtocolVersion = 1, NonceBytes = 16, MaxTokenChars = 16 * 1024, MaxFrameBytes = 64 * 1024, MaxDepth = 16;
    const int DeadlineMs = 2000, FirstPauseMs = 10, LongestPauseMs = 250;
    static readonly ulong[] RetriedCodes = { 8, 11, 12, 15 }; // RATE_LIMITED, SHUTTING_DOWN, TIMED_OUT, UNAVAILABLE
    static readonly string[] Reasons = {
        "ok", "expired", "not_yet_valid", "malformed", "unknown_secret", "secret_invalidated",
        "bad_signature", "wrong_audience", "revoked", "degraded_expired", "revocations_stale" };
    static readonly string[] Flags = { "degraded", "clock_suspect", "reissue_due", "refreshed" };
    static readonly string[] FeatureFlags = { "degraded", "clock_suspect" };
    const string Require = "require:"; // no token has a colon
    enum Exit { Valid, Invalid, Usage, NoAnswer, Refused }

    /// Ends the call with an exit status.
    sealed class Failed : Exception
    {
        public readonly Exit Status;
        public Failed(Exit status, string text) : base(text) { Status = status; }
    }

    /// Worth another attempt.
    sealed class TryAgain : Exception
    {
        public TryAgain(string text) : base(text) { }
    }

    /// About a token or, where that is null, about a feature.
    sealed class Question
    {
        public string Token, Feature;
    }

    sealed class Verdict
    {
        public bool Valid;
        public string Reason;
        public ulong? ExpiresAt;
        public List<string> Features = new List<string>();
    }

    static Failed InvalidReply(string text) { return new Failed(Exit.Refused, "the reply is invalid: " + text); }

    // MessagePack: as much of it as requests and replies use. Integers are ulong, or long below zero.

    static byte[] Request(ulong id, Question asked, byte[] nonce)
    {
        var body = new List<byte> { (byte)(asked.Token != null ? 0x85 : 0x86) };
        Action<string> text = value =>
        {
            var data = Encoding.UTF8.GetBytes(value);
            body.AddRange(new byte[] { 0xda, (byte)(data.Length >> 8), (byte)data.Length });
            body.AddRange(data);
        };
        text("v");
        body.Add(ProtocolVersion);
        text("id");
        body.Add(0xcf);
        for (int shift = 56; shift >= 0; shift -= 8) body.Add((byte)(id >> shift));
        text("op");
        if (asked.Token != null)
        {
            text("validate_license");
            text("token");
            text(asked.Token);
        }
        else
        {
            text("require");
            text("feature");
            text(asked.Feature);
            text("product"); // the product that the license must be for; nil is any
            body.Add(0xc0);
        }
        text("nonce");
        body.AddRange(new byte[] { 0xc4, (byte)nonce.Length });
        body.AddRange(nonce);
        var size = body.Count;
        return new[] { (byte)(size >> 24), (byte)(size >> 16), (byte)(size >> 8), (byte)size }.Concat(body).ToArray();
    }

    sealed class Decoder
    {
        static readonly UTF8Encoding Strict = new UTF8Encoding(false, true);
        readonly byte[] data;
        int at;

        public Decoder(byte[] data) { this.data = data; }

        public object Whole()
        {
            var value = Value(0);
            if (at != data.Length) throw InvalidReply("something follows the message");
            return value;
        }

        byte[] Take(ulong size)
        {
            if (size > (ulong)(data.Length - at)) throw InvalidReply("it is cut short");
            var taken = new byte[(int)size];
            Array.Copy(data, at, taken, 0, taken.Length);
            at += taken.Length;
            return taken;
        }

        ulong Unsigned(int size) { return Take((ulong)size).Aggregate(0UL, (number, digit) => number << 8 | digit); }

        object Signed(int size)
        {
            var number = (long)(Unsigned(size) << (64 - 8 * size)) >> (64 - 8 * size);
            return number < 0 ? (object)number : (ulong)number;
        }

        object Value(int depth)
        {
            if (depth > MaxDepth) throw InvalidReply("it is nested too deeply");
            var head = (int)Unsigned(1);
            if (head < 0x80) return (ulong)head;
            if (head < 0x90) return Map((ulong)head & 0x0f, depth);
            if (head < 0xa0) return List((ulong)head & 0x0f, depth);
            if (head < 0xc0) return Text((ulong)head & 0x1f);
            if (head >= 0xe0) return (long)(sbyte)head;
            switch (head)
            {
                case 0xc0: return null;
                case 0xc2: return false;
                case 0xc3: return true;
                case 0xc4: case 0xc5: case 0xc6: return Take(Unsigned(1 << (head - 0xc4)));
                case 0xca: Take(4); return 0.0; // never needed here
                case 0xcb: Take(8); return 0.0;
                case 0xcc: case 0xcd: case 0xce: case 0xcf: return Unsigned(1 << (head - 0xcc));
                case 0xd0: case 0xd1: case 0xd2: case 0xd3: return Signed(1 << (head - 0xd0));
                case 0xd9: case 0xda: case 0xdb: return Text(Unsigned(1 << (head - 0xd9)));
                case 0xdc: case 0xdd: return List(Unsigned(head == 0xdc ? 2 : 4), depth);
                case 0xde: case 0xdf: return Map(Unsigned(head == 0xde ? 2 : 4), depth);
                default: throw InvalidReply("it holds an extension type");
            }
        }

        string Text(ulong size)
        {
            try { return Strict.GetString(Take(size)); }
            catch (ArgumentException) { throw InvalidReply("a text is not UTF-8"); }
        }

        List<object> List(ulong count, int depth)
        {
            var items = new List<object>();
            for (ulong i = 0; i < count; i++) items.Add(Value(depth + 1));
            return items;
        }

        Dictionary<string, object> Map(ulong count, int depth)
        {
            var entries = new Dictionary<string, object>();
            for (ulong i = 0; i < count; i++)
            {
                var key = Value(depth + 1) as string;
                if (key == null || entries.ContainsKey(key)) throw InvalidReply("a key comes twice, or is not a text");
                entries[key] = Value(depth + 1);
            }
            return entries;
        }
    }

    // Who is at the other end: root, the agent's user or our own must own the socket's directory and serve the socket.

    [StructLayout(LayoutKind.Sequential)]
    struct Ucred { public int Pid; public uint Uid, Gid; }

    /// The head of struct statx (statx(2)), which has the same layout on every architecture.
    [StructLayout(LayoutKind.Sequential, Size = 256)]
    struct Statx { public uint Mask, BlockSize; public ulong Attributes; public uint Links, Uid, Gid; public ushort Mode; }

    const int SolSocket = 1, SoPeercred = 17, AtFdcwd = -100;
    const uint StatxBasic = 0x7ff;

    [DllImport("libc", SetLastError = true)]
    static extern int getsockopt(int socket, int level, int option, out Ucred value, ref int size);
    [DllImport("libc", SetLastError = true)]
    static extern int statx(int directory, byte[] path, int flags, uint mask, out Statx found);
    [DllImport("libc")]
    static extern uint geteuid();

    static bool Trusted(uint uid)
    {
        if (uid == 0 || uid == geteuid()) return true;
        var agent = File.ReadLines("/etc/passwd").FirstOrDefault(line => line.StartsWith("license-agent:", StringComparison.Ordinal));
        return agent != null && agent.Split(':')[2] == uid.ToString();
    }

    static void CheckDirectory(string path)
    {
        var directory = Path.GetDirectoryName(Path.GetFullPath(path));
        Statx info;
        if (statx(AtFdcwd, Encoding.UTF8.GetBytes(directory + "\0"), 0, StatxBasic, out info) != 0)
            throw new TryAgain(directory + " cannot be examined");
        if (!Trusted(info.Uid) || (info.Mode & 18) != 0) // 0022
            throw new Failed(Exit.NoAnswer, directory + " belongs to others, or others may write to it");
    }

    static void CheckPeer(Socket socket, string path)
    {
        Ucred peer;
        var size = Marshal.SizeOf(typeof(Ucred));
        if (getsockopt((int)socket.Handle, SolSocket, SoPeercred, out peer, ref size) != 0 || !Trusted(peer.Uid))
            throw new Failed(Exit.NoAnswer, path + " is not served by root or the agent");
    }

    // One attempt

    static int Left(Stopwatch watch)
    {
        var left = DeadlineMs - (int)watch.ElapsedMilliseconds;
        if (left <= 0) throw new TryAgain("no reply in time");
        return left;
    }

    static byte[] Receive(Socket socket, int size, Stopwatch watch)
    {
        var into = new byte[size];
        for (var have = 0; have < size;)
        {
            socket.ReceiveTimeout = Left(watch);
            var got = socket.Receive(into, have, size - have, SocketFlags.None);
            if (got == 0) throw new TryAgain("the agent closed the connection");
            have += got;
        }
        return into;
    }

    static byte[] Exchange(string path, byte[] frame, Stopwatch watch)
    {
        using (var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified))
        {
            socket.Connect(new UnixDomainSocketEndPoint(path));
            CheckPeer(socket, path);
            socket.SendTimeout = Left(watch);
            try
            {
                for (var sent = 0; sent < frame.Length;) sent += socket.Send(frame, sent, frame.Length - sent, SocketFlags.None);
            }
            catch (SocketException)
            {
                // The agent may have said why before it closed: the reply is read all the same.
            }
            var head = Receive(socket, 4, watch);
            var size = (uint)(head[0] << 24 | head[1] << 16 | head[2] << 8 | head[3]);
            if (size == 0 || size > MaxFrameBytes) throw InvalidReply("it says that it has " + size + " bytes");
            return Receive(socket, (int)size, watch);
        }
    }

    static Verdict ReadVerdict(object whole, ulong id, Question asked, byte[] nonce)
    {
        var reply = whole as Dictionary<string, object>;
        if (reply == null) throw InvalidReply("it is not a map");
        Func<string, object> member = name => { object value; return reply.TryGetValue(name, out value) ? value : DBNull.Value; };
        var error = member("error") as Dictionary<string, object>;
        if (error != null)
        {
            object code, said;
            error.TryGetValue("code", out code);
            error.TryGetValue("text", out said);
            var text = "error " + code + ": " + said;
            if (code is ulong && RetriedCodes.Contains((ulong)code)) throw new TryAgain(text);
            throw new Failed(Exit.Refused, text);
        }
        var echo = member("nonce") as byte[];
        if (!member("v").Equals((ulong)ProtocolVersion) || !id.Equals(member("id")) || echo == null || !echo.SequenceEqual(nonce))
            throw InvalidReply("it answers another request");
        var found = new Verdict { Reason = member("reason") as string };
        // A token gets one of the list. A machine's licenses may get others, which newer agents have: not valid.
        var isReason = asked.Token != null ? Reasons.Contains(found.Reason) : found.Reason != null;
        if (!(member("valid") is bool) || !isReason) throw InvalidReply("valid and reason");
        found.Valid = (bool)member("valid");
        if (found.Valid != (found.Reason == "ok")) throw InvalidReply("valid and reason");
        if (!(asked.Token != null ? Flags : FeatureFlags).All(flag => member(flag) is bool)) throw InvalidReply("a flag is missing");
        if (member("expires_at") is ulong) found.ExpiresAt = (ulong)member("expires_at");
        else if (member("expires_at") != null) throw InvalidReply("expires_at");
        var features = member("features") as List<object>;
        if (features == null || !features.All(name => name is string)) throw InvalidReply("features");
        found.Features.AddRange(features.Cast<string>());
        var allowed = found.Features.Contains(asked.Feature) && member("license") is string;
        if (asked.Token == null && found.Valid && !allowed) throw InvalidReply("no license allows the feature");
        return found;
    }

    // All attempts

    static Verdict Ask(string path, Question asked)
    {
        var watch = Stopwatch.StartNew();
        using (var random = RandomNumberGenerator.Create())
        {
            var longest = FirstPauseMs;
            for (ulong id = 1; ; id++)
            {
                string why;
                try
                {
                    CheckDirectory(path);
                    var nonce = new byte[NonceBytes]; // a fresh one for each attempt: the agent takes none twice
                    random.GetBytes(nonce);
                    return ReadVerdict(new Decoder(Exchange(path, Request(id, asked, nonce), watch)).Whole(), id, asked, nonce);
                }
                catch (TryAgain error) { why = error.Message; }
                catch (SocketException error) { why = error.Message; }
                var jitter = new byte[1];
                random.GetBytes(jitter);
                var pause = longest / 2 + longest * jitter[0] / 510;
                if (watch.ElapsedMilliseconds + pause >= DeadlineMs) throw new Failed(Exit.NoAnswer, why);
                Thread.Sleep(pause);
                longest = Math.Min(longest * 2, LongestPauseMs);
            }
        }
    }

    static Exit Run(string[] arguments)
    {
        if (arguments.Length == 0) throw new Failed(Exit.Usage, "usage: Validate TOKEN|-|require:FEATURE [SOCKET]");
        // A byte order mark and white space around the token do not belong to it.
        var token = arguments[0] == "-" ? Console.In.ReadToEnd() : arguments[0];
        token = (token.StartsWith("\ufeff", StringComparison.Ordinal) ? token.Substring(1) : token).Trim(' ', '\t', '\r', '\n', '\v', '\f');
        var asked = new Question { Token = token };
        if (arguments[0].StartsWith(Require, StringComparison.Ordinal))
        {
            asked = new Question { Feature = arguments[0].Substring(Require.Length) };
        }
        else if (token.Length == 0 || token.Length > MaxTokenChars || token.Any(c => c > 127))
        {
            if (arguments[0] != "-") throw new Failed(Exit.Usage, "a token has 1 to " + MaxTokenChars + " ASCII characters");
            Console.WriteLine("invalid\tmalformed\t-"); // what a file holds is no wrong usage
            return Exit.Invalid;
        }
        var named = Environment.GetEnvironmentVariable("LICENSE_AGENT_SOCKET");
        if (string.IsNullOrEmpty(named)) named = "/run/license-agent/pos.sock";
        var verdict = Ask(arguments.Length > 1 ? arguments[1] : named, asked);
        var fields = new List<string> { verdict.Valid ? "valid" : "invalid", verdict.Reason };
        fields.Add(verdict.ExpiresAt.HasValue ? verdict.ExpiresAt.ToString() : "-");
        fields.AddRange(verdict.Features);
        Console.WriteLine(string.Join("\t", fields));
        return verdict.Valid ? Exit.Valid : Exit.Invalid;
    }

    static int Main(string[] arguments)
    {
        try { return (int)Run(arguments); }
        catch (Failed error)
        {
            Console.Error.WriteLine("Validate: " + error.Message);
            return (int)error.Status;
        }
    }
}
