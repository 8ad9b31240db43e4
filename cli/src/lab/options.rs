//! What the lab is asked to show: command line options, made into a [`Scenario`].

use std::{fmt, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Args;
use tradewind_routing::{RttMatrix, placement};
use tradewind_service::{
    config::HumanDuration,
    exit::{UsageError, usage},
};

use super::{
    chaos,
    far_clients::FarClients,
    faults::{self, Fault},
    places::{self, Place},
    users::{self, User},
};
use crate::matrix_args::{self, place};

/// Of the built-in matrices' places; see `cli/data/README.md`.
const COORDINATES: &str = include_str!("../../data/coordinates.csv");
/// Most `--users`: each is a QUIC connection.
const MOST_USERS: usize = 5_000;
/// What `--duration` is when it is not given.
const DEFAULT_DURATION: HumanDuration = HumanDuration(Duration::from_secs(20));

/// With `--clients`: relays when `--relays` is not given, …
const FAR_RELAYS: usize = 12;
/// … what the search for their places takes each relay crossed to cost, …
const PLACEMENT_HOP_MS: f64 = 0.2;
/// … and how many clients there may be.
const MOST_FAR_CLIENTS: usize = 500;

/// What `--members` is when it is not given.
const DEFAULT_MEMBERS: usize = 10;

/// Options of `tradewind lab`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  tradewind lab
  tradewind lab --regions cape,mumbai,hong,dubai --duration 10s
  tradewind lab --matrix rtt.csv --relays 20 --duration 20s --report report.json
  tradewind lab --virtual --cut 'Cape Town-Mumbai@8s' --heal 'Cape Town-Mumbai@14s'
  tradewind lab --virtual --kill dubai@5s --restart dubai@12s --json
  tradewind lab --virtual --relays 20 --kill busiest@8s
  tradewind lab --virtual --brownout dubai-mumbai@5s:30% --heal dubai-mumbai@12s
  tradewind lab --virtual --chaos --seed 7
  tradewind lab --virtual --failures 100 --without-controller
  tradewind lab --virtual --matrix rtt.csv --relays 12 --clients 40
  tradewind lab --virtual --groups 20 --members 50 --kill busiest@8s

The matrix is a square CSV of round-trip times in milliseconds: names in the first row and the
first column, row = measuring side, an empty cell = no link. One relay and one client run at each
place. `path` in the report is the way there that a packet has recorded after the measurement.

Faults are WHAT@TIME, the time since the first plan. `controller` in place of a relay is the
controller; `busiest` the transit relay that carries most at that moment. While a fault is asked
for, pairs whose way crosses it send 50 packets a second besides: their silence is reported as
failover_gap_ms (session_gap_ms where an end's own edge was killed).")]
pub(crate) struct LabArgs {
    /// Square CSV of round-trip times in milliseconds [default: 12 regions that come with the
    /// program, or 24 when --relays asks for more]
    #[arg(long, value_name = "FILE", env = "TRADEWIND_LAB_MATRIX")]
    matrix: Option<PathBuf>,
    /// So many places of the matrix, far apart from each other (the first by the seed, then always
    /// the one farthest from those chosen) [default: all]
    #[arg(
        long,
        value_name = "N",
        env = "TRADEWIND_LAB_RELAYS",
        conflicts_with = "regions"
    )]
    relays: Option<usize>,
    /// These places of the matrix, commas between them; a part of a name is enough where only one
    /// has it
    #[arg(
        long,
        value_name = "A,B,C",
        value_delimiter = ',',
        env = "TRADEWIND_LAB_REGIONS"
    )]
    regions: Vec<String>,
    /// How long to measure, from the first plan on
    #[arg(
        long,
        value_name = "TIME",
        default_value = "20s",
        env = "TRADEWIND_LAB_DURATION"
    )]
    pub(super) duration: HumanDuration,
    /// Run in virtual time: as fast as the machine can, and the same from the same seed
    #[arg(long = "virtual", env = "TRADEWIND_LAB_VIRTUAL")]
    virtual_time: bool,
    /// Decides clocks, losses, jitter, sizes and times of what is sent
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        env = "TRADEWIND_LAB_SEED"
    )]
    seed: u64,
    /// Cut the link between two places, both ways, so long after the first plan (repeatable)
    #[arg(long, value_name = "A-B@TIME", env = "TRADEWIND_LAB_CUT")]
    pub(super) cut: Vec<String>,
    /// Cut it from the first to the second place only (repeatable)
    #[arg(long, value_name = "A-B@TIME", env = "TRADEWIND_LAB_CUT_ONE_WAY")]
    pub(super) cut_one_way: Vec<String>,
    /// Let the link work far worse than normal, both ways: so much more delay, or so much loss
    /// [default: +100ms] (repeatable)
    #[arg(
        long,
        value_name = "A-B@TIME[:+DELAY|:PERCENT%]",
        env = "TRADEWIND_LAB_BROWNOUT"
    )]
    pub(super) brownout: Vec<String>,
    /// Change the link's one-way delay for good, both ways (repeatable)
    #[arg(
        long,
        value_name = "A-B@TIME:+DELAY|:-DELAY",
        env = "TRADEWIND_LAB_DELAY_STEP"
    )]
    pub(super) delay_step: Vec<String>,
    /// Have the link be again as it was at first, whatever was done to it (repeatable)
    #[arg(long, value_name = "A-B@TIME", env = "TRADEWIND_LAB_HEAL")]
    pub(super) heal: Vec<String>,
    /// Kill a relay, `busiest` or `controller` (repeatable); a relay's client goes to another one
    #[arg(long, value_name = "RELAY@TIME", env = "TRADEWIND_LAB_KILL")]
    pub(super) kill: Vec<String>,
    /// Start a relay or `controller` anew, with what it kept on disk (repeatable)
    #[arg(long, value_name = "RELAY@TIME", env = "TRADEWIND_LAB_RESTART")]
    pub(super) restart: Vec<String>,
    /// Give a relay no processor for some time [default: 500ms] (repeatable)
    #[arg(long, value_name = "RELAY@TIME[:TIME]", env = "TRADEWIND_LAB_STALL")]
    pub(super) stall: Vec<String>,
    /// Drain a relay, as an operator who stops it: it sends its clients elsewhere, and ends when they
    /// are gone or after this time [default: 10s] (repeatable)
    #[arg(long, value_name = "RELAY@TIME[:TIME]", env = "TRADEWIND_LAB_DRAIN")]
    pub(super) drain: Vec<String>,
    /// Faults of all kinds, decided by the seed, and a check of what must hold all the same; exit
    /// code 1 and the command that replays it when something does not
    #[arg(
        long,
        env = "TRADEWIND_LAB_CHAOS",
        requires = "virtual_time",
        conflicts_with_all = ["cut", "cut_one_way", "brownout", "delay_step", "heal", "kill", "restart", "stall", "drain"]
    )]
    chaos: bool,
    /// With --chaos: so many users who send to each other, one at each relay and the others anywhere,
    /// as the seed decides [default: 200]
    #[arg(
        long,
        value_name = "N",
        env = "TRADEWIND_LAB_USERS",
        requires = "chaos"
    )]
    users: Option<usize>,
    /// Instead of the lab's traffic: so many single failures one after the other, each healed
    /// before the next, and how long steady flows were silent
    #[arg(
        long,
        value_name = "N",
        env = "TRADEWIND_LAB_FAILURES",
        requires = "virtual_time",
        conflicts_with_all = ["chaos", "cut", "cut_one_way", "brownout", "delay_step", "heal", "kill", "restart", "stall", "drain"]
    )]
    failures: Option<usize>,
    /// With --failures: kill the controller before the first
    #[arg(long, env = "TRADEWIND_LAB_WITHOUT_CONTROLLER", requires = "failures")]
    without_controller: bool,
    /// Instead of the lab's traffic: so many clients, drawn by the seed from all places of the matrix,
    /// and relays at the best places for it (or at --regions) [--relays: 12]; the report compares what
    /// all pairs of them measure with the direct way, one central server, the nearest edges, and the
    /// best that any edges and any path could do
    #[arg(
        long,
        value_name = "N",
        env = "TRADEWIND_LAB_CLIENTS",
        conflicts_with_all = ["chaos", "failures", "groups", "cut", "cut_one_way", "brownout", "delay_step", "heal", "kill", "restart", "stall", "drain"]
    )]
    clients: Option<usize>,
    /// Besides the lab's traffic: so many groups, to which messages and media are sent; and a count of
    /// the copies that takes, and of what members miss. Exit code 1 when there are more copies than
    /// needed, or a member misses something or gets it twice or out of order
    #[arg(
        long,
        value_name = "N",
        env = "TRADEWIND_LAB_GROUPS",
        conflicts_with_all = ["chaos", "failures"]
    )]
    groups: Option<usize>,
    /// Members of each group, drawn by the seed from clients of their own; where there are more than
    /// places, several clients are at one [default: 10]
    #[arg(
        long,
        value_name = "M",
        requires = "groups",
        env = "TRADEWIND_LAB_MEMBERS"
    )]
    members: Option<usize>,
    /// Random loss on every link, in percent
    #[arg(
        long,
        value_name = "PERCENT",
        default_value_t = 0.0,
        env = "TRADEWIND_LAB_LOSS"
    )]
    loss: f64,
    /// Delay added at random to each packet on every link, at most this much
    #[arg(
        long,
        value_name = "TIME",
        default_value = "0s",
        env = "TRADEWIND_LAB_JITTER"
    )]
    jitter: HumanDuration,
    /// Write the report to this file (JSON)
    #[arg(long, value_name = "FILE", env = "TRADEWIND_LAB_REPORT")]
    report: Option<PathBuf>,
    /// Print the report to standard output, and nothing else there
    #[arg(long, env = "TRADEWIND_LAB_JSON")]
    json: bool,
}

/// A world to be built and what happens in it.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    /// The matrix's file, as it was named.
    pub(crate) matrix_name: String,
    /// Of the chosen places only.
    pub(crate) matrix: RttMatrix,
    /// By index in the matrix.
    pub(crate) places: Vec<Place>,
    pub(crate) duration: Duration,
    pub(crate) virtual_time: bool,
    pub(crate) seed: u64,
    /// With chaos: one at each relay, in order, and the others.
    pub(crate) users: Vec<User>,
    /// In order of time.
    pub(crate) faults: Vec<Fault>,
    /// Probability per packet and link.
    pub(crate) loss: f64,
    pub(crate) jitter: Duration,
    pub(crate) report: Option<PathBuf>,
    pub(crate) json: bool,
    pub(crate) mode: Mode,
    pub(crate) groups: Option<GroupOptions>,
    pub(crate) far_clients: Option<FarClients>,
    /// The options that choose the world and what fails in it, for a command that replays it.
    pub(crate) world: String,
}

/// Groups that are sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroupOptions {
    pub(crate) groups: usize,
    /// Of each.
    pub(crate) members: usize,
}

/// What is done in the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Traffic between all pairs, and the faults asked for.
    Traffic,
    /// The same with faults decided by the seed, and invariants checked.
    Chaos,
    /// Single failures one after the other.
    Failures {
        count: usize,
        without_controller: bool,
    },
}

impl Scenario {
    /// Checks the options and reads the matrix.
    ///
    /// All errors are the caller's.
    pub(crate) fn new(args: &LabArgs) -> anyhow::Result<Self> {
        let (matrix_name, matrix) = match &args.matrix {
            Some(file) => matrix_args::read(Some(file))?,
            // Clients are to be elsewhere than relays: of all places there are.
            None if args.clients.is_some() => matrix_args::built_in(usize::MAX)?,
            None => matrix_args::built_in(args.relays.unwrap_or(0))?,
        };
        let coordinates = match args.matrix {
            None => COORDINATES,
            Some(_) => "",
        };
        let chosen = chosen_places(args, &matrix)?;
        let far_clients = match args.clients {
            None => None,
            Some(clients @ 2..=MOST_FAR_CLIENTS) => Some(FarClients::draw(
                matrix.clone(),
                chosen.clone(),
                clients,
                args.seed,
            )),
            Some(_) => {
                return Err(wrong(format!(
                    "--clients must be from 2 to {MOST_FAR_CLIENTS}"
                )));
            }
        };
        let matrix = matrix.select(&chosen);
        if !(0.0..=50.0).contains(&args.loss) {
            return Err(wrong("--loss is a percentage from 0 to 50"));
        }
        let duration = args.duration.0;
        if duration < Duration::from_millis(100) || duration > Duration::from_secs(86_400) {
            return Err(wrong("--duration must be from 100ms to 24h"));
        }
        if let Some((from, to)) = places::unconnected(&matrix) {
            let names = matrix.names();
            return Err(wrong(format!(
                "the matrix {matrix_name} knows no way from {:?} to {:?}, not even over other places: choose places without one of them",
                names[from], names[to]
            )));
        }
        if let Some(file) = &args.report {
            // Now, and not after the run. What is there stays until there is a report.
            std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(file)
                .with_context(|| format!("cannot write the report to {}", file.display()))
                .map_err(usage)?;
        }
        let places = places::places(&matrix, coordinates);
        let mode = mode(args)?;
        let users = match mode {
            Mode::Chaos => users::users(&places, users(args, places.len())?, args.seed),
            _ => Vec::new(),
        };
        let faults = match mode {
            Mode::Chaos => chaos::faults(&matrix, &users, duration, args.seed),
            _ => faults::asked_for(args, &matrix)?,
        };
        Ok(Self {
            users,
            faults,
            matrix_name,
            matrix,
            places,
            duration,
            virtual_time: args.virtual_time,
            seed: args.seed,
            loss: args.loss / 100.0,
            jitter: args.jitter.0,
            report: args.report.clone(),
            json: args.json,
            mode,
            groups: groups(args)?,
            far_clients,
            world: world(args),
        })
    }
}

/// The options that choose the world and what fails in it, but for the seed.
fn world(args: &LabArgs) -> String {
    let mut world = String::new();
    if let Some(matrix) = &args.matrix {
        world += &format!(" --matrix '{}'", matrix.display());
    }
    if let Some(relays) = args.relays {
        world += &format!(" --relays {relays}");
    }
    if !args.regions.is_empty() {
        world += &format!(" --regions '{}'", args.regions.join(","));
    }
    if let Some(groups) = args.groups {
        world += &format!(" --groups {groups}");
    }
    if let Some(members) = args.members {
        world += &format!(" --members {members}");
    }
    if let Some(users) = args.users {
        world += &format!(" --users {users}");
    }
    if let Some(clients) = args.clients {
        world += &format!(" --clients {clients}");
    }
    let faults = [
        ("cut", &args.cut),
        ("cut-one-way", &args.cut_one_way),
        ("brownout", &args.brownout),
        ("delay-step", &args.delay_step),
        ("heal", &args.heal),
        ("kill", &args.kill),
        ("restart", &args.restart),
        ("stall", &args.stall),
        ("drain", &args.drain),
    ];
    for (option, values) in faults {
        for value in values {
            world += &format!(" --{option} '{value}'");
        }
    }
    if args.duration != DEFAULT_DURATION {
        world += &format!(" --duration {}", args.duration);
    }
    if args.loss > 0.0 {
        world += &format!(" --loss {}", args.loss);
    }
    if !args.jitter.0.is_zero() {
        world += &format!(" --jitter {}", args.jitter);
    }
    world
}

fn groups(args: &LabArgs) -> anyhow::Result<Option<GroupOptions>> {
    let Some(groups) = args.groups else {
        return Ok(None);
    };
    if !(1..=1_000).contains(&groups) {
        return Err(wrong("--groups must be from 1 to 1000"));
    }
    let members = args.members.unwrap_or(DEFAULT_MEMBERS);
    if !(2..=10_000).contains(&members) {
        return Err(wrong("--members must be from 2 to 10000"));
    }
    Ok(Some(GroupOptions { groups, members }))
}

/// How many users there are in a network of so many relays.
fn users(args: &LabArgs, relays: usize) -> anyhow::Result<usize> {
    match args.users {
        None => Ok(users::DEFAULT.max(relays)),
        Some(users) if users < relays || users > MOST_USERS => Err(wrong(format!(
            "--users {users}: it must be at least one for each of the {relays} relays, and at most {MOST_USERS}"
        ))),
        Some(users) => Ok(users),
    }
}

fn mode(args: &LabArgs) -> anyhow::Result<Mode> {
    match args.failures {
        Some(0) => Err(wrong("--failures must be at least 1")),
        Some(count) => Ok(Mode::Failures {
            count,
            without_controller: args.without_controller,
        }),
        None if args.chaos && args.duration.0 < chaos::SHORTEST => Err(wrong(format!(
            "--chaos needs a --duration of at least {:?}",
            chaos::SHORTEST
        ))),
        None if args.chaos => Ok(Mode::Chaos),
        None => Ok(Mode::Traffic),
    }
}

fn wrong(text: impl Into<String>) -> anyhow::Error {
    UsageError::new(text).into()
}

/// Indices in the whole matrix, in its order; as they were named with `--regions`.
fn chosen_places(args: &LabArgs, matrix: &RttMatrix) -> anyhow::Result<Vec<usize>> {
    let n = matrix.len();
    let chosen = if !args.regions.is_empty() {
        let mut chosen = Vec::new();
        for region in &args.regions {
            let index = place(matrix, region, "--regions")?;
            if chosen.contains(&index) {
                let name = &matrix.names()[index];
                return Err(wrong(format!("--regions names {name:?} twice")));
            }
            chosen.push(index);
        }
        chosen
    } else if args.clients.is_some() {
        let count = args.relays.unwrap_or(FAR_RELAYS);
        if count == 0 || count > n {
            return Err(wrong(format!(
                "--relays {count}: the matrix has {n} places"
            )));
        }
        let mut best =
            placement::choose_for_clients(matrix, count, PLACEMENT_HOP_MS, &mut |_| {}).relays;
        best.sort_unstable();
        best
    } else if let Some(count) = args.relays {
        if count > n {
            return Err(wrong(format!(
                "--relays {count}: the matrix has only {n} places"
            )));
        }
        places::spread(matrix, count, args.seed)
    } else {
        (0..n).collect()
    };
    if chosen.len() < 2 {
        return Err(wrong("the lab needs at least 2 places"));
    }
    Ok(chosen)
}

impl Scenario {
    /// Whether relays and the controller find what they have kept when they start anew.
    pub(crate) fn wants_disks(&self) -> bool {
        self.mode != Mode::Traffic || self.faults.iter().any(|fault| fault.what.restarts())
    }

    /// Whether the way of every packet is to be seen.
    pub(crate) fn watches_packets(&self) -> bool {
        self.mode != Mode::Traffic || !self.faults.is_empty()
    }

    /// The command that runs it again.
    pub(crate) fn replay(&self) -> String {
        let what = match self.mode {
            Mode::Traffic => String::new(),
            Mode::Chaos => " --chaos".to_owned(),
            Mode::Failures {
                count,
                without_controller,
            } => {
                let without = if without_controller {
                    " --without-controller"
                } else {
                    ""
                };
                format!(" --failures {count}{without}")
            }
        };
        let (seed, world) = (self.seed, &self.world);
        format!("tradewind lab --virtual{what} --seed {seed}{world}")
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.matrix.len();
        write!(
            f,
            "{n} relays, {} pairs of clients, {}{:?} of {} time, matrix {}, seed {}",
            n * (n - 1),
            self.groups.map_or_else(String::new, |of| format!(
                "{} groups of {} members, ",
                of.groups, of.members
            )),
            self.duration,
            if self.virtual_time { "virtual" } else { "real" },
            self.matrix_name,
            self.seed,
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::lab::faults::{FaultKind, Who, Worse};

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: LabArgs,
    }

    fn scenario(line: &[&str]) -> anyhow::Result<Scenario> {
        let program = Program::try_parse_from([&["lab"], line].concat())?;
        Scenario::new(&program.args)
    }

    fn error(line: &[&str]) -> String {
        let error = scenario(line).expect_err("the line is wrong");
        assert_eq!(
            tradewind_service::exit::code(&error),
            2,
            "{line:?}: {error:#}"
        );
        let line = tradewind_service::exit::one_line(&error);
        assert!(!line.contains('\n'));
        line
    }

    fn hyphens() -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.csv");
        std::fs::write(
            &file,
            "x,eu-1,eu-west-1,us\neu-1,0,1,2\neu-west-1,1,0,3\nus,2,3,0\n",
        )
        .unwrap();
        let name = file.display().to_string();
        (dir, name)
    }

    #[test]
    fn without_options_it_is_the_built_in_table_with_coordinates() {
        let scenario = scenario(&[]).unwrap();
        assert_eq!(scenario.matrix.len(), 12);
        assert_eq!(scenario.duration, Duration::from_secs(20));
        assert!(!scenario.virtual_time);
        for place in &scenario.places {
            assert!(
                place.latitude != 0.0 && place.longitude != 0.0,
                "{}",
                place.relay
            );
        }
        let n = scenario.matrix.len();
        let missing = (0..n * n).any(|cell| scenario.matrix.cell(cell / n, cell % n).is_none());
        assert!(!missing, "the table is a full square");
    }

    #[test]
    fn the_command_that_replays_a_run_asks_for_the_same_world_and_the_same_faults() {
        let line = [
            "--virtual",
            "--relays",
            "6",
            "--groups",
            "2",
            "--members",
            "5",
            "--seed",
            "7",
            "--kill",
            "busiest@3s",
            "--kill",
            "controller@4s",
            "--restart",
            "controller@5s",
        ];
        let asked = scenario(&line).unwrap();
        let replay = asked.replay();
        let words = replay.strip_prefix("tradewind lab ").unwrap();
        let words: Vec<&str> = words
            .split(' ')
            .map(|word| word.trim_matches('\''))
            .collect();
        let again = scenario(&words).unwrap();
        assert_eq!(again.faults, asked.faults);
        assert_eq!(again.matrix.names(), asked.matrix.names());
        assert_eq!((again.seed, again.groups), (asked.seed, asked.groups));
        assert_eq!(again.replay(), replay);
    }

    #[test]
    fn clients_stand_elsewhere_than_relays_and_nothing_that_would_be_ignored_is_taken() {
        let asked = scenario(&["--clients", "10"]).unwrap();
        let far = asked.far_clients.unwrap();
        assert_eq!((asked.matrix.len(), far.clients.len()), (12, 10));
        assert!(far.matrix.len() > 12);
        for option in ["--drain", "--kill"] {
            let line = ["--clients", "10", option, "dubai@1s"];
            assert!(scenario(&line).is_err(), "{option}");
        }
    }

    #[test]
    fn parts_of_names_choose_regions_in_the_order_given() {
        let scenario = scenario(&["--regions", "mumbai, hong,cape"]).unwrap();
        assert_eq!(
            scenario.matrix.names(),
            ["Mumbai", "Hong Kong", "Cape Town"]
        );
        assert_eq!(scenario.matrix.cell(0, 1), Some(110.551));
    }

    #[test]
    fn a_number_of_relays_chooses_places_that_depend_on_the_seed_only() {
        let names = |seed: &str| {
            let line = ["--relays", "4", "--seed", seed];
            scenario(&line).unwrap().matrix.names().to_vec()
        };
        assert_eq!(names("1"), names("1"));
        assert_eq!(names("1").len(), 4);
        assert!((2..20).any(|seed| names(&seed.to_string()) != names("1")));
    }

    #[test]
    fn faults_are_read_by_names_even_when_these_have_hyphens() {
        let (_dir, file) = hyphens();
        let line = [
            "--matrix",
            &file,
            "--heal",
            "us-eu-west-1@14s",
            "--cut",
            "eu-west-1-us@8s",
            "--cut",
            "eu-1-eu-west-1@500ms",
            "--kill",
            "US@9s",
        ];
        let scenario = scenario(&line).unwrap();
        let at = |ms, what| Fault {
            at: Duration::from_millis(ms),
            what,
        };
        assert_eq!(
            scenario.faults,
            [
                at(500, FaultKind::Cut(0, 1)),
                at(8_000, FaultKind::Cut(1, 2)),
                at(9_000, FaultKind::Kill(Who::Relay(2))),
                at(14_000, FaultKind::Heal(2, 1)),
            ]
        );
    }

    #[test]
    fn faults_of_all_kinds_are_read_with_what_they_add() {
        let (_dir, file) = hyphens();
        let line = [
            "--matrix",
            &file,
            "--cut-one-way",
            "us-eu-1@1s",
            "--brownout",
            "us-eu-1@2s",
            "--brownout",
            "us-eu-1@3s:+250ms",
            "--brownout",
            "us-eu-1@4s:12.5%",
            "--delay-step",
            "us-eu-1@5s:-1ms",
            "--kill",
            "busiest@6s",
            "--kill",
            "controller@0s",
            "--restart",
            "controller@7s",
            "--stall",
            "us@8s:300ms",
            "--drain",
            "us@9s",
        ];
        let ms = Duration::from_millis;
        let faults = scenario(&line).unwrap().faults;
        let kinds: Vec<FaultKind> = faults.iter().map(|fault| fault.what).collect();
        assert_eq!(
            kinds,
            [
                FaultKind::Kill(Who::Controller),
                FaultKind::CutOneWay(2, 0),
                FaultKind::Brownout(2, 0, Worse::Delay(ms(100))),
                FaultKind::Brownout(2, 0, Worse::Delay(ms(250))),
                FaultKind::Brownout(2, 0, Worse::Loss(125_000)),
                FaultKind::DelayStep(2, 0, -1_000),
                FaultKind::Kill(Who::Busiest),
                FaultKind::Restart(Who::Controller),
                FaultKind::Stall(2, ms(300)),
                FaultKind::Drain(2, ms(10_000)),
            ]
        );
    }

    #[test]
    fn wrong_usage_is_told_in_one_line_with_what_there_is() {
        let (_dir, file) = hyphens();
        for (line, says) in [
            (&["--regions", "atlantis,cape"][..], "Cape Town"),
            (&["--regions", "cape"], "at least 2"),
            (&["--regions", "cape,Cape Town"], "twice"),
            (&["--relays", "25"], "only 24"),
            (&["--relays", "0"], "at least 2"),
            (&["--loss", "70"], "percentage"),
            (&["--cut", "cape-hong"], "A-B@TIME"),
            (&["--cut", "cape-atlantis@1s"], "atlantis"),
            (&["--cut", "cape@1s"], "hyphen"),
            (&["--cut", "cape-Cape Town@1s"], "itself"),
            (&["--cut", "cape-hong@soon"], "soon"),
            (&["--cut", "cape-hong@30s"], "after the end"),
            (&["--kill", "nowhere@1s"], "nowhere"),
            (&["--kill", "dubai@1s:2s"], "RELAY@TIME"),
            (&["--restart", "busiest@1s"], "busiest"),
            (&["--stall", "controller@1s"], "only relays"),
            (&["--drain", "controller@1s"], "only relays"),
            (&["--brownout", "cape-hong@1s:much"], "neither"),
            (&["--brownout", "cape-hong@1s:130%"], "neither"),
            (&["--delay-step", "cape-hong@1s"], "by how much"),
            (&["--delay-step", "cape-hong@1s:-3s"], "less than nothing"),
            (&["--virtual", "--failures", "0"], "at least 1"),
            (&["--virtual", "--chaos", "--duration", "3s"], "at least"),
            (&["--virtual", "--chaos", "--users", "9"], "12 relays"),
            (&["--duration", "1ms"], "100ms"),
            (&["--matrix", "/nonexistent/m.csv"], "cannot read"),
            (&["--report", "/nonexistent/r.json"], "cannot write"),
        ] {
            let text = error(line);
            assert!(text.contains(says), "{line:?}: {text}");
        }
        std::fs::write(&file, "x,a,b,c\na,0,1,\nb,1,0,5\nc,,,0\n").unwrap();
        let text = error(&["--matrix", &file]);
        assert!(text.contains("no way from \"a\" to \"c\""), "{text}");
        std::fs::write(&file, "x,a,b\na,0,1\nb,fast,0\n").unwrap();
        let text = error(&["--matrix", &file]);
        assert!(
            text.contains("\"b\"") || text.contains("b") && text.contains("fast"),
            "{text}"
        );
    }
}
