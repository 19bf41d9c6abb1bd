// Program bench pulls images with Tank and with its peers in turn and prints the cost of each: wall time, CPU seconds,
// peak memory and bytes on disk.
//
// On disk it owns one temporary directory, what it mounts there, and the images in its cache directory.
// Peers come from the Go module proxy, as ../go.mod pins them, and from Debian's packages; one that is
// missing is left out and reported.
//
// Its invariant: it removes exactly the mounts, loop devices, processes and files that it made, also on
// Ctrl-C. It mounts in a mount namespace of its own, so that even after SIGKILL only files are left.
//
// The surprising rule: every run gets a new file system. On a file system that is only emptied with `rm -rf`, a run
// would also measure how ext4 avoids recently deleted inodes, and the leftovers of the previous run.
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
	"syscall"

	"github.com/tank-snapshotter/tank/integration"
)

// options are the command-line flags; main has the help text of each.
type options struct {
	scenarios string
	image     string  // oci:DIR:TAG; empty: an image is generated
	size      int     // compressed size of the generated image in MB; 0: the scenario's
	layers    int     // 0: the scenario's
	scale     float64 // factor for the sizes of generated images
	rounds    int     // 0: the scenario's
	only      string
	fs        string
	fsSize    int // GiB
	backing   string
	cache     string
	write     string
	builds    string
	quiet     float64
}

// inner is the environment variable that marks the inner process, which does the work in a mount namespace of its own.
// Its value is the temporary directory.
const inner = "TANK_BENCH_DIR"

func main() {
	var o options
	flag.StringVar(&o.scenarios, "scenario", "pull", "comma-separated `names`, or all: "+describeScenarios())
	flag.StringVar(&o.image, "image", os.Getenv("IMAGE"), "`oci:DIR:TAG` to pull instead of the scenario's image")
	flag.IntVar(&o.size, "size", 0,
		"`MB` (10^6 bytes) of the generated image, compressed, instead of the scenario's size")
	flag.IntVar(&o.layers, "layers", 0, "layers of the generated image, instead of the scenario's")
	flag.Float64Var(&o.scale, "scale", 1,
		"`factor` for the sizes of generated images: 0.02 checks quickly that all works")
	flag.IntVar(&o.rounds, "rounds", 0, "how often each contender pulls, instead of the scenario's rounds")
	flag.StringVar(&o.only, "only", "",
		"comma-separated `names` of contenders, instead of the scenario's; the others are compared with the first")
	flag.StringVar(&o.fs, "fs", "xfs", "file system made for each run: xfs, ext4 or tmpfs")
	flag.IntVar(&o.fsSize, "fs-size", 0, "size of that file system in `GiB`; 0: as the largest image needs, at least 4")
	flag.StringVar(&o.backing, "backing", os.TempDir(),
		"`directory` of the loop file and all other files; on tmpfs a busy disk does not affect the results")
	flag.StringVar(&o.cache, "cache", filepath.Join(os.TempDir(), "tank-bench"),
		"`directory` that keeps generated images for later runs")
	flag.StringVar(&o.write, "write", "",
		"`file` to write each table into, between its markers bench-SCENARIO; charts go into bench/ beside it")
	flag.StringVar(&o.builds, "builds", "", "other builds of Tank to compare with: comma-separated `name=binary`")
	flag.Float64Var(&o.quiet, "quiet", 0,
		"repeat, at most ten times, a run during which other processes took over this `percent` of the CPUs; 0: never")
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
		os.Exit(1) // the inner process has printed the error
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// enter starts the program again as the inner process, in a mount namespace of its own, waits for it and removes the
// temporary directory. It passes SIGINT and SIGTERM on as SIGTERM; the inner process then ends the processes that it
// started.
func enter(o options) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it mounts file systems and compares owners")
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
	// The inner process has a process group of its own, so that Ctrl-C reaches it only through this process.
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

// work runs the scenarios inside the namespace. If one fails, the others still run.
func work(dir string, o options) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	picked, err := selectScenarios(o)
	if err != nil {
		return err
	}
	progs, err := findPrograms(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range picked {
		b := &bench{ctx: ctx, dir: dir, opts: o, progs: progs, scenario: s}
		if err := b.run(); err != nil {
			errs = append(errs, fmt.Errorf("scenario %s: %w", s.name, err))
			fmt.Fprintln(os.Stderr, "bench:", errs[len(errs)-1])
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// run measures the scenario, prints the report, and writes it and the charts if the flag -write names a file.
func (b *bench) run() error {
	all, err := selectContenders(b.only, b.opts.builds, b.progs)
	if err != nil {
		return err
	}
	rows, err := b.measure(all)
	if err != nil {
		return err
	}
	text := b.report(rows)
	fmt.Print("\n" + text)
	if b.opts.write == "" {
		return nil
	}
	links, err := writeCharts(filepath.Join(filepath.Dir(b.opts.write), "bench"), b.charts(rows))
	if err != nil {
		return err
	}
	return writeSection(b.opts.write, b.section(), integration.WrapMarkdown(text)+"\n"+links)
}
