// Program bench pulls one image with Tank and with its peers in turn and prints what each of them took: wall time, CPU
// seconds, peak memory, bytes on disk.
//
// On disk it owns one temporary directory, what it mounts there, and the image in its cache directory. Peers come from the Go
// module proxy, as ../go.mod pins them, and from Debian's packages; one that is missing is left out and named.
//
// Its invariant: it removes exactly the mounts, loop devices, processes and files that it made, also on Ctrl-C. It mounts in
// a mount namespace of its own, so that even after SIGKILL only files are left.
//
// The surprising rule: every run gets a file system made for it. A run after an `rm -rf` would measure how ext4 avoids
// inodes that were deleted lately, and the leftovers of the run before.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// options are the flags.
type options struct {
	image   string // oci:DIR:TAG; empty: generated
	size    int    // MB of a generated image, compressed
	layers  int
	rounds  int
	only    string
	fs      string
	fsSize  int // GiB
	backing string
	cache   string
	write   string
	section string
	goals   string
	builds  string
	quiet   float64
}

// inner marks the process that works, in a mount namespace of its own; its value is the temporary directory.
const inner = "TANK_BENCH_DIR"

func main() {
	var o options
	flag.StringVar(&o.image, "image", os.Getenv("IMAGE"), "`oci:DIR:TAG` to pull; without it one is generated")
	flag.IntVar(&o.size, "size", 700, "`MB` (10^6 bytes) of the generated image, compressed")
	flag.IntVar(&o.layers, "layers", 6, "layers of the generated image")
	flag.IntVar(&o.rounds, "rounds", 5, "how often each contender pulls")
	flag.StringVar(&o.only, "only", "", "comma-separated `names` of contenders; empty: all that can run here")
	flag.StringVar(&o.fs, "fs", "xfs", "file system made for each run: xfs, ext4 or tmpfs")
	flag.IntVar(&o.fsSize, "fs-size", 0, "its size in `GiB`; 0: eight times the image, at least 4")
	flag.StringVar(&o.backing, "backing", os.TempDir(), "`directory` of the loop file and all else; on tmpfs a busy disk does not count")
	flag.StringVar(&o.cache, "cache", filepath.Join(os.TempDir(), "tank-bench"), "`directory` that keeps generated images for the next time")
	flag.StringVar(&o.write, "write", "", "`file` that gets the table, between the markers of the section")
	flag.StringVar(&o.section, "section", "bench-pull", "`name` in the file's markers")
	flag.StringVar(&o.goals, "goals", "", "ratio lines to print: comma-separated `ours/peer=time:cpu`, cpu may be empty")
	flag.StringVar(&o.builds, "builds", "", "other builds of Tank to compare with: comma-separated `name=binary`")
	flag.Float64Var(&o.quiet, "quiet", 0, "repeat, at most ten times, a run during which others took more than this `percent` of the CPUs; 0: never")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	var err error
	if dir := os.Getenv(inner); dir != "" {
		err = work(dir, o)
	} else {
		err = enter(o)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(1) // the process that worked said it
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// enter starts the program again in a mount namespace of its own and removes the temporary directory after its end. A signal
// ends the inner process, which then ends its own.
func enter(o options) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it mounts file systems, and compares owners and xattrs too")
	}
	dir, err := os.MkdirTemp(o.backing, "tkb") // short: unix socket paths have 108 bytes
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), inner+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, os.Stdout, os.Stderr
	// A process group of its own: Ctrl-C reaches it through us, once.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Setpgid: true, Pdeathsig: syscall.SIGTERM}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if err := start(cmd); err != nil {
		return err
	}
	go func() {
		for range signals {
			_ = cmd.Process.Signal(syscall.SIGTERM)
		}
	}()
	return cmd.Wait()
}

// work is the benchmark, inside the namespace.
func work(dir string, o options) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var goals []goal
	for text := range strings.SplitSeq(o.goals, ",") {
		if text == "" {
			continue
		}
		g, err := parseGoal(text)
		if err != nil {
			return err
		}
		goals = append(goals, g)
	}
	progs, err := findPrograms(ctx)
	if err != nil {
		return err
	}
	all, err := selectContenders(o, progs)
	if err != nil {
		return err
	}
	img, err := prepareImage(ctx, o, progs)
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	reg, err := startRegistry(ctx, filepath.Join(dir, "registry.yml"), img.store, progs)
	if err != nil {
		return err
	}
	defer reg.end()
	if o.fsSize == 0 {
		o.fsSize = max(4, int(8*img.Compressed>>30)+1)
	}
	b := &bench{ctx: ctx, dir: dir, opts: o, progs: progs, img: img, reg: reg}
	res, err := b.rounds(all)
	if err != nil {
		return err
	}
	text := render(b, all, res, goals)
	fmt.Print("\n" + text)
	if o.write != "" {
		return writeSection(o.write, o.section, text)
	}
	return nil
}

// bench is one run of the program.
type bench struct {
	ctx   context.Context // ends with the program
	dir   string
	opts  options
	progs programs
	img   image
	reg   *registry
	tree  string // what the first pull made
}

// rounds lets every contender pull once per round, each round beginning with another one.
func (b *bench) rounds(all []contender) (map[string][]sample, error) {
	res := map[string][]sample{}
	for round := range b.opts.rounds {
		for i := range all {
			c := all[(i+round)%len(all)]
			s, err := b.quietly(c)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			res[c.name] = append(res[c.name], s)
			fmt.Fprintf(os.Stderr, "round %d/%d  %-22s %6.2f s  %6.2f CPU s  %5.0f MB peak  (others %.2f CPU s)\n",
				round+1, b.opts.rounds, c.name, s.wall.Seconds(), s.cpu.Seconds(), float64(s.rss)/1e6, s.elsewhere.Seconds())
		}
	}
	return res, nil
}

// quietly is once, repeated while others use the machine too much, if that is asked for. The quietest run counts.
func (b *bench) quietly(c contender) (best sample, err error) {
	for try := range 11 {
		s, err := b.once(c)
		if err != nil {
			return s, err
		}
		if try == 0 || s.noise() < best.noise() {
			best = s
		}
		if b.opts.quiet == 0 || best.noise() <= b.opts.quiet {
			break
		}
	}
	return best, nil
}

// once makes a file system, has the contender pull into it, and drops it.
func (b *bench) once(c contender) (s sample, err error) {
	if err := warm(b.img.store); err != nil {
		return s, err
	}
	fs, err := makeFS(b.ctx, filepath.Join(b.dir, "fs"), b.opts.fs, int64(b.opts.fsSize)<<30)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, fs.drop()) }()
	r := &run{bench: b, dir: fs.dir}
	defer func() { r.endDaemons() }()
	if err := c.prepare(r); err != nil {
		return s, err
	}
	before, err := fs.used()
	if err != nil {
		return s, err
	}
	m := r.begin()
	if err := c.pull(r, m); err != nil {
		return s, err
	}
	s = m.end()
	if c.check != nil {
		if err := c.check(r); err != nil {
			return s, err
		}
	}
	after, err := fs.used()
	s.disk = after - before
	return s, err
}
