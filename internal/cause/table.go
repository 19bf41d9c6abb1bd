package cause

import (
	"fmt"
	"slices"
)

// The exit codes, on which scripts rely.
const (
	ExitOK       = 0
	ExitOther    = 1 // this machine: its disk, its permissions, its processes
	ExitUsage    = 2
	ExitNotFound = 3 // not found, or not cached
	ExitDenied   = 4 // a registry requires a login, or refuses access
	ExitNetwork  = 5 // the network, or a registry that fails
	ExitContent  = 6 // content that fails verification or is not allowed, a damaged database, faults found by check
)

// Causes on this machine.
const (
	DiskFull    Kind = "disk full"
	IO          Kind = "I/O error"
	ReadOnly    Kind = "read-only"
	Descriptors Kind = "too many open files"
	Memory      Kind = "not enough memory"
	FileSystem  Kind = "file system"
	Unfit       Kind = "unfit file system"
	Mapping     Kind = "id without a mapping"
	Denied      Kind = "denied by this machine"
	OtherUser   Kind = "root of another user"
	NotRoot     Kind = "not a root"
	Newer       Kind = "newer format"
	Version     Kind = "versions that do not fit"
	Busy        Kind = "another process"
	Silent      Kind = "a process that does not answer"
	Untrusted   Kind = "a process of another user"
	NoDaemon    Kind = "no daemon"
	InUse       Kind = "in use"
	Exposed     Kind = "writable for others"
)

// Causes in the request of the user.
const (
	Usage         Kind = "usage"
	Configuration Kind = "configuration"
	NoRoot        Kind = "no root"
	NotCached     Kind = "not cached"
	Image         Kind = "unknown image"
	Holder        Kind = "unknown holder"
	Tag           Kind = "unknown tag"
	Incomplete    Kind = "incomplete image"
	Platform      Kind = "unknown platform"
)

// Causes at a registry and on the way to it.
const (
	Unauthorized       Kind = "login required"
	Forbidden          Kind = "forbidden"
	CredentialStore    Kind = "credential store"
	Redirected         Kind = "login at another registry"
	RateLimited        Kind = "rate limit"
	Certificate        Kind = "unknown certificate authority"
	CertificateExpired Kind = "expired certificate"
	CertificateName    Kind = "certificate of another name"
	HTTPToTLS          Kind = "HTTP to a TLS port"
	TLSToHTTP          Kind = "TLS to an HTTP port"
	DNS                Kind = "name resolution"
	Refused            Kind = "connection refused"
	Unreachable        Kind = "no route"
	Timeout            Kind = "timeout"
	Proxy              Kind = "proxy"
	Handshake          Kind = "TLS handshake"
	Network            Kind = "network"
	Broken             Kind = "broken connection"
	RegistryFailed     Kind = "registry failed"
)

// Causes in content.
const (
	Database     Kind = "damaged database"
	Damaged      Kind = "damaged root"
	Digest       Kind = "wrong digest"
	Document     Kind = "malformed document"
	NotRootfs    Kind = "no root filesystem"
	LayerInvalid Kind = "invalid layer"
	Faults       Kind = "faults found"
)

// advice is the exit code of a cause, and a sentence about what the user can do.
type advice struct {
	kind Kind
	exit int
	hint string // the sentence if there is no subject
	of   string // the sentence with %s for the subject; "": hint is used
}

// table has every cause, the most serious one first.
var table = []advice{
	{
		Database, ExitContent,
		"Nothing was changed. `check --rebuild` makes the database again from the directories. A daemon does so " +
			"by itself when it starts.",
		"Nothing was changed. To make the database again from the directories, start the daemon of the root, or: " +
			"tank-snapshotter check --rebuild --root %s",
	},
	{
		DiskFull, ExitOther,
		"The disk is full, or a quota is used up. `gc` frees what nothing needs and lists the unfinished " +
			"downloads that it keeps; `holders` lists what keeps the rest.",
		"",
	},
	{
		Damaged, ExitContent,
		"Something in the root has changed since it was verified: `check` lists what. Pull the image again " +
			"with --refresh.",
		"",
	},
	{IO, ExitOther, "The disk or its driver reported this error: look at the kernel's log (dmesg).", ""},
	{ReadOnly, ExitOther, "The file system is mounted read-only, or this user may not write to the root.", ""},
	{
		Unfit, ExitOther,
		"Put the root on a local file system, such as ext4, XFS, Btrfs or tmpfs. docs/on-disk.md lists what " +
			"Tank needs.",
		"",
	},
	{FileSystem, ExitOther, "Serve the root with mode = \"directory\", or put it on another file system.", ""},
	{
		Memory, ExitOther,
		"The machine has no memory left, or the process may not have more: end other programs, or raise the " +
			"limit (MemoryMax= in the unit).",
		"",
	},
	{Descriptors, ExitOther, "Raise the limit of open files: `ulimit -n`, or LimitNOFILE= in the unit.", ""},
	{
		Mapping, ExitOther,
		"The image is all right. Give the user more ids in /etc/subuid and /etc/subgid, or pull it as root.",
		"",
	},
	{
		OtherUser, ExitOther,
		"Run the command as the user and with the rights that made the root, or choose another directory with --root.",
		"",
	},
	{
		Exposed, ExitOther,
		"Nothing was changed, because another user could have put files there. Make sure that this did not " +
			"happen, and then remove that permission with chmod go-w.",
		"",
	},
	{NotRoot, ExitOther, "Nothing was changed. Choose another directory with --root.", ""},
	{Newer, ExitOther, "Nothing was changed. Use the version of tank-snapshotter that made the root, or a " +
		"later one.", ""},
	{
		Version, ExitOther,
		"The two programs are of different versions. After an update, restart the daemon, and every program " +
			"that uses it.",
		"",
	},
	{Silent, ExitOther, "Is the process stopped? If it hangs, restart it: a restart does no harm to the root.", ""},
	{Untrusted, ExitOther, "Nothing was sent to that process.", ""},
	{Busy, ExitOther, "Wait until the other process has ended, or stop it.", ""},
	{NoDaemon, ExitOther, "Is the daemon running? Start it with: tank-snapshotter serve", ""},
	{
		InUse, ExitOther,
		"Stop containerd and all of its containers first. --force releases the holder all the same, and breaks " +
			"the containers.",
		"",
	},
	{
		Denied, ExitOther,
		"This machine refused the access, not the registry: check the owner of the root and the permissions of " +
			"this process.",
		"",
	},
	{
		Digest, ExitContent,
		"Nothing that failed verification was kept. If it happens again, a proxy or the registry changes the " +
			"bytes: tell its operator.",
		"",
	},
	{
		LayerInvalid, ExitContent,
		"The image itself is at fault, so pulling it again does not help: tell the person who built it.",
		"",
	},
	{NotRootfs, ExitContent, "Such content can't be unpacked into a directory. Use the program that it was " +
		"made for.", ""},
	{
		Document, ExitContent,
		"The image itself is at fault, so pulling it again does not help: tell the person who built it.",
		"",
	},
	{
		Faults, ExitContent,
		"`check --repair` mends what can be mended. If the database itself is broken, run `check --rebuild`.",
		"",
	},
	{Usage, ExitUsage, "", ""},
	{Configuration, ExitUsage, "Correct the file, or its permissions.", ""},
	{
		CredentialStore, ExitDenied,
		"Unlock or mend the credential store that the Docker configuration names, or log in again.",
		"Unlock or mend the credential store that the Docker configuration names, or log in again with `docker " +
			"login %s`.",
	},
	{
		Redirected, ExitDenied,
		"Only the registry of the reference and the hosts that its hosts.toml names get credentials: add the " +
			"other one there.",
		"Only the registry of the reference and the hosts that its hosts.toml names get credentials: add %s there.",
	},
	{
		Forbidden, ExitDenied,
		"Log in with `docker login` as a user who may read the repository, or ask its owner for access.",
		"Log in with `docker login %s` as a user who may read the repository, or ask its owner for access.",
	},
	{
		Unauthorized, ExitDenied,
		"Is the name right? Many registries ask for a login where a repository does not exist. Log in to a " +
			"private one with `docker login`, whose credentials are used.",
		"Is the name right? Many registries ask for a login where a repository does not exist. Log in to a " +
			"private one with `docker login %s`, whose credentials are used.",
	},
	{NoRoot, ExitNotFound, "Is --root right, and is its disk mounted? Only `pull` and `serve` make a root.", ""},
	{NotCached, ExitNotFound, "Pull it once without --offline.", ""},
	{Image, ExitNotFound, "Is the name right? `images` lists what is here.", ""},
	{Holder, ExitNotFound, "Is the name right? `holders` lists all holders.", ""},
	{
		Platform, ExitNotFound,
		"The registry has the image for other platforms only. --platform asks for one of those.",
		"",
	},
	{
		Tag, ExitNotFound,
		"Are the name and the tag right? The registry does not have them.",
		"Are the name and the tag right? The registry %s does not have them.",
	},
	{
		Incomplete, ExitNotFound,
		"The registry does not have all parts of the image: tell its operator, or push the image again.",
		"The registry %s does not have all parts of the image: tell its operator, or push the image again.",
	},
	{
		RateLimited, ExitNetwork,
		"The registry limits how often it is asked: try again later, or log in, which often raises the limit.",
		"The registry %[1]s limits how often it is asked: try again later, or log in with `docker login %[1]s`, " +
			"which often raises the limit.",
	},
	{
		CertificateExpired, ExitNetwork,
		"Is this machine's clock right? If it is, the registry's operator has to renew the certificate.",
		"",
	},
	{
		CertificateName, ExitNetwork,
		"Use the name that the certificate was made for, or ask the registry's operator for a right one.",
		"",
	},
	{
		Certificate, ExitNetwork,
		"If you trust the authority, put its certificate into the registry's hosts directory as ca.crt.",
		"If you trust the authority, put its certificate into /etc/containerd/certs.d/%s/ca.crt, or below " +
			"--hosts-dir.",
	},
	{HTTPToTLS, ExitNetwork, "The registry speaks TLS: leave out --plain-http, or write https:// in hosts.toml.", ""},
	{
		TLSToHTTP, ExitNetwork,
		"The server there does not speak TLS. If that is right, allow it with --plain-http or with http:// in " +
			"hosts.toml.",
		"",
	},
	{
		Handshake, ExitNetwork,
		"The server ended the TLS handshake. If it wants a client certificate, name one in the registry's hosts.toml.",
		"",
	},
	{
		Proxy, ExitNetwork,
		"The proxy that HTTP_PROXY or HTTPS_PROXY names does not connect: check them, and NO_PROXY.",
		"",
	},
	{
		DNS, ExitNetwork,
		"Is the registry's name right? This machine's name resolution does not find it.",
		"Is the name %s right? This machine's name resolution does not find it.",
	},
	{
		Refused, ExitNetwork,
		"No program listens there: are the registry's name and port right, and is the registry running?",
		"No program listens at %s: are the name and the port right, and is the registry running?",
	},
	{
		Unreachable, ExitNetwork,
		"There is no way through the network to the registry: check the routes, the proxy and the firewall.",
		"",
	},
	{Timeout, ExitNetwork, "The registry did not answer in time: check the network and the proxy, and try again.", ""},
	{
		Broken, ExitNetwork,
		"The connection broke. Try again: what was downloaded is kept for a day, and the pull goes on from " +
			"there.",
		"",
	},
	{
		RegistryFailed, ExitNetwork,
		"The registry itself failed. Try again later, or tell its operator.",
		"The registry %s itself failed. Try again later, or tell its operator.",
	},
	{Network, ExitNetwork, "Check the network between this machine and the registry, and try again.", ""},
}

// Kinds returns every cause, the most serious one first.
func Kinds() []Kind {
	kinds := make([]Kind, len(table))
	for i, a := range table {
		kinds[i] = a.kind
	}
	return kinds
}

func rank(kind Kind) int {
	return slices.IndexFunc(table, func(a advice) bool { return a.kind == kind })
}

// Exit returns the exit code of a cause; ok is false if no cause is known.
func (c Cause) Exit() (code int, ok bool) {
	i := rank(c.Kind)
	if i < 0 {
		return ExitOther, false
	}
	return table[i].exit, true
}

// Hint returns a sentence about what to do; "" if there is none.
func (c Cause) Hint() string {
	i := rank(c.Kind)
	switch {
	case i < 0:
		return ""
	case c.Subject != "" && table[i].of != "":
		return fmt.Sprintf(table[i].of, c.Subject)
	}
	return table[i].hint
}
