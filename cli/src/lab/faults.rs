//! What goes wrong, or right again, on purpose: the kinds of faults and how they are asked for.

use std::{str::FromStr, time::Duration};

use anyhow::Context as _;
use tradewind_routing::RttMatrix;
use tradewind_service::{
    config::HumanDuration,
    exit::{UsageError, usage},
};

use super::options::LabArgs;
use crate::matrix_args::link;

/// What a relay is called that is chosen when the time has come.
const BUSIEST: &str = "busiest";
const CONTROLLER: &str = "controller";

/// A brownout without more words adds this much delay.
const BROWNOUT: Duration = Duration::from_millis(100);
/// A stall without more words.
const STALL: Duration = Duration::from_millis(500);
/// A drain without more words: what relays take for it unless told otherwise.
const DRAIN: Duration = Duration::from_secs(10);

/// Something that goes wrong, or right again, on purpose. Places by index in the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Since measuring began.
    pub(crate) at: Duration,
    pub(crate) what: FaultKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// Nothing passes the link, either way.
    Cut(usize, usize),
    /// Nothing passes from the first to the second place.
    CutOneWay(usize, usize),
    /// The link works, but far worse than is normal for it, both ways.
    Brownout(usize, usize, Worse),
    /// Another delay is normal for the link from now on, both ways: so many microseconds more.
    DelayStep(usize, usize, i64),
    /// The link is as it was at first.
    Heal(usize, usize),
    /// Power cut.
    Kill(Who),
    /// The process starts anew on the same host, with what it has kept on disk.
    Restart(Who),
    /// The relay gets no processor for so long.
    Stall(usize, Duration),
    /// The relay's wall clock is set by so many seconds.
    StepClock(usize, i64),
    /// The relay's clock runs so many parts per million too fast.
    Drift(usize, i32),
    /// Every write to the relay's disk takes so long.
    SlowDisk(usize, Duration),
    /// Packets between the controller and the relays are lost, parts per million.
    ControlLoss(u32),
    /// The relay and the controller do not reach each other.
    Partition(usize),
    /// They do again.
    Rejoin(usize),
    /// An operator stops the relay: it sends its clients elsewhere, and ends when they are gone or
    /// after so long.
    Drain(usize, Duration),
    /// The link doubles many packets and brings many late, both ways: parts per million each.
    Disorder(usize, usize, u32),
    /// A user goes to another network at a place, so far from its exit, with new addresses under a
    /// living session. Users by index.
    Roam(usize, usize, Duration),
    /// A user's machine sleeps for so long.
    Sleep(usize, Duration),
}

/// Whom it happens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Relay(usize),
    /// The transit relay that carries most at that moment.
    Busiest,
    Controller,
}

/// What a brownout adds to a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Worse {
    Delay(Duration),
    /// Parts per million.
    Loss(u32),
}

impl FaultKind {
    /// What happens, with the places' names.
    pub(crate) fn describe(self, matrix: &RttMatrix) -> String {
        let name = |place: usize| &matrix.names()[place];
        let link = |a: usize, b: usize| format!("{} - {}", name(a), name(b));
        let who = |who: Who| match who {
            Who::Relay(relay) => name(relay).clone(),
            Who::Busiest => "the busiest transit relay".to_owned(),
            Who::Controller => "the controller".to_owned(),
        };
        match self {
            Self::Cut(a, b) => format!("cut {}", link(a, b)),
            Self::CutOneWay(a, b) => format!("cut {} -> {}", name(a), name(b)),
            Self::Brownout(a, b, Worse::Delay(by)) => {
                format!("brownout {}: {by:?} more", link(a, b))
            }
            Self::Brownout(a, b, Worse::Loss(ppm)) => {
                format!("brownout {}: {} % lost", link(a, b), percent(ppm))
            }
            Self::DelayStep(a, b, us) => {
                let sign = if us < 0 { '-' } else { '+' };
                let by = Duration::from_micros(us.unsigned_abs());
                format!("delay of {} {sign}{by:?}", link(a, b))
            }
            Self::Heal(a, b) => format!("heal {}", link(a, b)),
            Self::Kill(victim) => format!("kill {}", who(victim)),
            Self::Restart(victim) => format!("restart {}", who(victim)),
            Self::Stall(relay, by) => format!("stall {} for {by:?}", name(relay)),
            Self::StepClock(relay, s) => format!("set the clock of {} by {s} s", name(relay)),
            Self::Drift(relay, ppm) => format!("clock of {} drifts by {ppm} ppm", name(relay)),
            Self::SlowDisk(relay, by) => format!("disk of {} takes {by:?}", name(relay)),
            Self::ControlLoss(ppm) => format!("{} % of control packets lost", percent(ppm)),
            Self::Partition(relay) => format!("controller cut off from {}", name(relay)),
            Self::Rejoin(relay) => format!("controller reached from {} again", name(relay)),
            Self::Drain(relay, within) => format!("drain {} within {within:?}", name(relay)),
            Self::Disorder(a, b, ppm) => {
                format!(
                    "{} % of packets twice or late on {}",
                    percent(ppm),
                    link(a, b)
                )
            }
            Self::Roam(user, place, access) => {
                format!(
                    "user {user} has a new address in {}, {access:?} away",
                    name(place)
                )
            }
            Self::Sleep(user, by) => format!("user {user} sleeps for {by:?}"),
        }
    }

    /// Whether a process is started anew by it, which wants disks.
    pub(crate) fn restarts(self) -> bool {
        matches!(self, Self::Restart(_))
    }

    /// Whether ways of packets may cross it.
    pub(crate) const fn hits_ways(self) -> bool {
        matches!(
            self,
            Self::Cut(..)
                | Self::CutOneWay(..)
                | Self::Brownout(..)
                | Self::DelayStep(..)
                | Self::Stall(..)
                | Self::Drain(..)
                | Self::Kill(Who::Relay(_) | Who::Busiest)
        )
    }

    /// Whether this ends that.
    pub(crate) fn heals(self, that: Self) -> bool {
        match (self, that) {
            (
                Self::Heal(x, y),
                Self::Cut(a, b)
                | Self::CutOneWay(a, b)
                | Self::Brownout(a, b, _)
                | Self::DelayStep(a, b, _)
                | Self::Disorder(a, b, _),
            ) => (a, b) == (x, y) || (b, a) == (x, y),
            (Self::Restart(one), Self::Kill(other)) => one == other,
            (Self::Restart(one), Self::Drain(other, _)) => one == Who::Relay(other),
            _ => false,
        }
    }

    /// The word it goes by in reports.
    pub(crate) const fn kind(self) -> &'static str {
        match self {
            Self::Cut(..) => "cut",
            Self::CutOneWay(..) => "cut_one_way",
            Self::Brownout(_, _, Worse::Delay(_)) => "brownout_delay",
            Self::Brownout(_, _, Worse::Loss(_)) => "brownout_loss",
            Self::DelayStep(..) => "delay_step",
            Self::Heal(..) => "heal",
            Self::Kill(_) => "kill",
            Self::Restart(_) => "restart",
            Self::Stall(..) => "stall",
            Self::StepClock(..) => "clock_step",
            Self::Drift(..) => "clock_drift",
            Self::SlowDisk(..) => "slow_disk",
            Self::ControlLoss(_) => "control_loss",
            Self::Partition(_) => "partition",
            Self::Rejoin(_) => "rejoin",
            Self::Drain(..) => "drain",
            Self::Disorder(..) => "disorder",
            Self::Roam(..) => "roam",
            Self::Sleep(..) => "sleep",
        }
    }
}

fn percent(ppm: u32) -> f64 {
    f64::from(ppm) / 10_000.0
}

fn wrong(text: impl Into<String>) -> anyhow::Error {
    UsageError::new(text).into()
}

/// The faults that were asked for, in order of time.
pub(super) fn asked_for(args: &LabArgs, matrix: &RttMatrix) -> anyhow::Result<Vec<Fault>> {
    let mut parser = Parser {
        args,
        matrix,
        faults: Vec::new(),
    };
    parser.all(&args.cut, "--cut", "", |p, what, _| {
        link(p.matrix, what).map(|(a, b)| FaultKind::Cut(a, b))
    })?;
    parser.all(&args.cut_one_way, "--cut-one-way", "", |p, what, _| {
        link(p.matrix, what).map(|(a, b)| FaultKind::CutOneWay(a, b))
    })?;
    parser.all(
        &args.brownout,
        "--brownout",
        "[:+DELAY|:PERCENT%]",
        |p, what, more| {
            let worse = more.map_or(Ok(Worse::Delay(BROWNOUT)), worse)?;
            link(p.matrix, what).map(|(a, b)| FaultKind::Brownout(a, b, worse))
        },
    )?;
    parser.all(
        &args.delay_step,
        "--delay-step",
        ":+DELAY|:-DELAY",
        |p, what, more| {
            let (a, b) = link(p.matrix, what)?;
            let us = delay_step(more)?;
            let least = matrix.one_way(a, b).min(matrix.one_way(b, a));
            if least.is_some_and(|delay| (delay.as_micros() as i64) < -us) {
                return Err(wrong("the delay would be less than nothing"));
            }
            Ok(FaultKind::DelayStep(a, b, us))
        },
    )?;
    parser.all(&args.heal, "--heal", "", |p, what, _| {
        link(p.matrix, what).map(|(a, b)| FaultKind::Heal(a, b))
    })?;
    parser.all(&args.kill, "--kill", "", |p, what, _| {
        Ok(FaultKind::Kill(match what {
            BUSIEST => Who::Busiest,
            other => p.who(other)?,
        }))
    })?;
    parser.all(&args.restart, "--restart", "", |p, what, _| {
        p.who(what).map(FaultKind::Restart)
    })?;
    parser.all(&args.stall, "--stall", "[:TIME]", |p, what, more| {
        let by = more.map_or(Ok(STALL), duration)?;
        match p.who(what)? {
            Who::Relay(relay) => Ok(FaultKind::Stall(relay, by)),
            _ => Err(wrong("only relays can be stalled")),
        }
    })?;
    parser.all(&args.drain, "--drain", "[:TIME]", |p, what, more| {
        let within = more.map_or(Ok(DRAIN), duration)?;
        match p.who(what)? {
            Who::Relay(relay) => Ok(FaultKind::Drain(relay, within)),
            _ => Err(wrong("only relays can be drained")),
        }
    })?;
    let mut faults = parser.faults;
    faults.sort_by_key(|fault| fault.at);
    Ok(faults)
}

struct Parser<'a> {
    args: &'a LabArgs,
    matrix: &'a RttMatrix,
    faults: Vec<Fault>,
}

impl Parser<'_> {
    /// All values of one option: `WHAT@TIME`, and after a colon what else it takes, if anything.
    fn all(
        &mut self,
        texts: &[String],
        option: &str,
        more: &str,
        parse: impl Fn(&Self, &str, Option<&str>) -> anyhow::Result<FaultKind>,
    ) -> anyhow::Result<()> {
        let form = match option {
            "--kill" | "--restart" | "--stall" | "--drain" => "RELAY@TIME",
            _ => "A-B@TIME",
        };
        for text in texts {
            let malformed = || {
                wrong(format!(
                    "{option} {text:?}: it must be {form}{more}, as in 8s"
                ))
            };
            let (what, at) = text.rsplit_once('@').ok_or_else(malformed)?;
            let (at, rest) = match at.split_once(':') {
                Some(_) if more.is_empty() => return Err(malformed()),
                Some((at, rest)) => (at, Some(rest.trim())),
                None => (at, None),
            };
            let at = duration(at).with_context(|| format!("{option} {text:?}"))?;
            if at > self.args.duration.0 {
                return Err(wrong(format!(
                    "{option} {text:?} comes after the end: --duration is {}",
                    self.args.duration
                )));
            }
            let what =
                parse(self, what.trim(), rest).with_context(|| format!("{option} {text:?}"))?;
            self.faults.push(Fault { at, what });
        }
        Ok(())
    }

    fn who(&self, name: &str) -> anyhow::Result<Who> {
        if name == CONTROLLER {
            return Ok(Who::Controller);
        }
        let relay = self.matrix.index_of(name);
        relay.map(Who::Relay).context("the relay").map_err(usage)
    }
}

fn duration(text: &str) -> anyhow::Result<Duration> {
    HumanDuration::from_str(text.trim())
        .map(|time| time.0)
        .map_err(usage)
}

fn worse(text: &str) -> anyhow::Result<Worse> {
    if let Some(delay) = text.strip_prefix('+') {
        return duration(delay).map(Worse::Delay);
    }
    let share = text
        .strip_suffix('%')
        .and_then(|percent| percent.trim().parse::<f64>().ok())
        .filter(|percent| (0.0..=100.0).contains(percent));
    match share {
        Some(percent) => Ok(Worse::Loss((percent * 10_000.0).round() as u32)),
        None => Err(wrong(format!(
            "{text:?} is neither a delay to add, as in +100ms, nor a share to lose, as in 30%"
        ))),
    }
}

/// Microseconds.
fn delay_step(text: Option<&str>) -> anyhow::Result<i64> {
    let by = |text: &str| duration(text).map(|by| by.as_micros() as i64);
    match text.map(|text| text.split_at(text.len().min(1))) {
        Some(("+", more)) => by(more),
        Some(("-", less)) => by(less).map(|us| -us),
        _ => Err(wrong("it must say by how much, as in :+40ms or :-20ms")),
    }
}
