// Command tank-snapshotter keeps OCI images on one machine: it pulls them, alone or for containerd.
//
// It owns nothing on disk but the socket under a root while it owns that root. What lies in the root is the tank package's.
//
// Its invariant: stdout has what was asked for and nothing else; progress, logs and errors go to stderr; the exit code says what kind of
// error it was (exit.go).
//
// The surprising rule: a command may be done by another process. One process owns a root at a time, and whoever comes second hands its
// request over (owner.go): to a daemon, or to another command that is just working there.
package main

import (
	"fmt"
	stdlog "log"
	"os"
	"runtime/debug"

	"github.com/containerd/log"
	"github.com/spf13/cobra"

	"github.com/tank-snapshotter/tank/internal/printable"
)

func main() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	os.Exit(run(os.Args[1:]))
}

// memoryLimit is the heap size above which Go collects garbage more often, so that the process stays within 256 MiB for
// images of 500,000 entries (docs/adr/0023-memory.md). The memory in use may exceed it. The environment variable
// GOMEMLIMIT overrides it.
const memoryLimit = 192 << 20

// run runs one command and returns its exit code.
func run(args []string) int {
	stdout, stderr := printable.NewWriter(os.Stdout), printable.NewWriter(os.Stderr)
	escapeLogs(stderr)
	c := &cli{}
	ctx, stop := c.ending.context()
	defer stop()
	root := c.command()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil && !c.began {
		// cobra found the arguments wrong before any of our code ran.
		err = usageError{err}
	}
	if code := c.ending.code(); err != nil && code != 0 {
		giveUp(c.ending.message(), code)
	}
	if err != nil {
		printable.Fprintf(stderr, "tank-snapshotter: %s\n", err)
		if hint := hintFor(err); hint != "" {
			printable.Fprintf(stderr, "%s\n", hint)
		}
	}
	_ = stdout.Flush() // it can only hold half a rune, which ends no valid output
	return exitCode(err)
}

// escapeLogs makes the log entries of packages printable: Tank's own and containerd's entries, and lines of the
// standard library's log, in which net/http quotes what a server sent.
func escapeLogs(stderr *printable.Writer) {
	log.L.Logger.SetFormatter(printable.LogFormatter(log.L.Logger.Formatter))
	stdlog.SetOutput(stderr)
}

// cli holds the flags that every command has.
type cli struct {
	root       string
	address    string
	configFile string
	logLevel   string

	ending ending
	read   map[bool]settings // what settingsFor returned, since a pipe can be read once; the key is its serve

	began bool // a command of ours runs, so that an error is no longer one of usage
}

// command builds the tree of commands.
func (c *cli) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "tank-snapshotter",
		Short: "Keep OCI images on one machine, for any program and for containerd",
		Long: "Keep OCI images on one machine, for any program and for containerd.\n\n" +
			exitCodes,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if err := log.SetLevel(first(c.logLevel, "info")); err != nil {
				return fmt.Errorf("--log-level %q: %w", c.logLevel, err)
			}
			return nil
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&c.root, "root", "", "directory that holds everything (default $TANK_CACHE, the config's image_cache, for uid 0 the daemon's if there is one, ~/.cache/tank)")
	flags.StringVar(&c.root, "cache", "", "the same as --root")
	_ = flags.MarkHidden("cache")
	flags.StringVar(&c.address, "address", "", "socket of the daemon to ask, whatever root it has (serve: to listen on)")
	flags.StringVar(&c.configFile, "config", "", "config file (default $XDG_CONFIG_HOME/tank/config.toml, else "+systemConfig+")")
	flags.StringVar(&c.logLevel, "log-level", "", "trace, debug, info, warn, error or fatal (default info)")
	root.AddCommand(c.pullCommand(), c.imagesCommand(), c.inspectCommand(), c.removeCommand(), c.gcCommand(), c.checkCommand(), c.holdersCommand(),
		c.releaseCommand(), c.serveCommand(),
		c.configCommand(), c.versionCommand())
	return root
}

// do makes f a command's function, and takes note that the arguments were in order.
func (c *cli) do(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c.began = true
		return f(cmd, args)
	}
}
