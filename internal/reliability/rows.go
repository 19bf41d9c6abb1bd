package main

// row is one promise and the runs that show it.
type row struct {
	promise string
	want    string // how much is wanted, if goal and unit do not say it
	command string // what anyone can run
	proof   string // Run.Proof in the ledger
	fs      string // Run.FS, if the row is about one file system; empty: all
	unit    string // what Count counts
	goal    int64  // how many are wanted
	also    string // a further count of the runs that has a goal
	alsoMin int64  // its goal
}

// rows are the rows of the table, in its order.
var rows = []row{
	{
		promise: "Nothing acknowledged is lost, and nothing is left over, after `kill -9` of the command, the daemon " +
			"and containerd at random moments",
		command: "make kills", proof: "kills", unit: "kills", goal: 10_000,
	},
	{
		promise: "A crash at any step between bytes and records leaves an intact root",
		command: "make crashpoints", proof: "crashpoints", unit: "occurrences", goal: 1,
		want: "100 % of points and occurrences",
	},
	{
		promise: "Nothing acknowledged is lost in a power cut at a random moment, on ext4",
		command: "make cuts FS=ext4", proof: "cuts", fs: "ext4", unit: "cuts", goal: 1_000,
	},
	{
		promise: "The same on XFS",
		command: "make cuts FS=xfs", proof: "cuts", fs: "xfs", unit: "cuts", goal: 1_000,
	},
	{
		promise: "The same for every history of one and two operations and a third of those of three, cut at " +
			"every sync, on ext4",
		command: "make cut-histories FS=ext4", proof: "cut-histories", fs: "ext4", unit: "cuts",
		also: "histories", alsoMin: 243, goal: 1, want: "243 histories",
	},
	{
		promise: "The same on XFS",
		command: "make cut-histories FS=xfs", proof: "cut-histories", fs: "xfs", unit: "cuts",
		also: "histories", alsoMin: 243, goal: 1, want: "243 histories",
	},
	{
		promise: "Every state that a crash may legally leave of a recorded history opens and passes `check`",
		command: "make states", proof: "states", unit: "states", goal: 1_000_000, also: "histories", alsoMin: 1_000,
	},
	{
		promise: "Every damage to a root is found, and mended where its source is here or at a registry",
		command: "make damage", proof: "damage", unit: "faults", goal: 10_000,
	},
	{
		promise: "Every call is answered within 5 seconds while the disk stands still for 10 minutes, and all " +
			"works afterwards",
		command: "make stall", proof: "stall", unit: "stalls", goal: 1, want: "10 minutes",
	},
	{
		promise: "100 running containers see no I/O error while the daemon is restarted, killed and replaced",
		command: "make restarts", proof: "restarts", unit: "restarts", goal: 500,
	},
	{
		promise: "500 clients pull 10 images at once: one download for each blob, memory within the budget",
		command: "make clients", proof: "clients", unit: "runs", goal: 1, want: "1 run",
	},
	{
		promise: "No input crashes a parser or a service",
		command: "make fuzz FUZZTIME=5m", proof: "fuzz", unit: "executions", goal: 100_000_000,
	},
	{
		promise: "The services answer 16 clients at once as if one came after the other",
		command: "make linear", proof: "linearizability", unit: "histories", goal: 1_000,
	},
	{
		promise: "The same history has one result through every door and in every mode",
		command: "make doors", proof: "doors", unit: "histories", goal: 1, want: "every operation",
	},
	{
		promise: "After 2 hours of pulls, containers and collection, memory, descriptors, goroutines, mounts and the " +
			"disk are where they began",
		command: "make soak DURATION=2h", proof: "soak", unit: "minutes", goal: 120,
	},
}
