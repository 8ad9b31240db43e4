//! Why there is nothing to show of a path.

/// Why there is no path to show.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// No relay is called so.
    #[error("no relay is called `{name}`; there are: {}", listed(candidates))]
    UnknownRelay {
        /// What was asked for.
        name: String,
        /// Those there are.
        candidates: Vec<String>,
    },
    /// Several relays fit.
    #[error(
        "`{name}` could be any of: {}; give more of the name",
        listed(candidates)
    )]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// Those that fit.
        candidates: Vec<String>,
    },
    /// No plan is in force yet.
    #[error("no plan is in force yet: relays are still measuring; ask again in some seconds")]
    NoPlan,
    /// Nobody has ever said anything about it.
    #[error("nothing is known of a link from `{from}` to `{to}` over uplink {uplink}")]
    NoLink {
        /// Where it should begin.
        from: String,
        /// Where it should end.
        to: String,
        /// Over which uplink.
        uplink: u8,
    },
    /// The plan has no way.
    #[error("plan {plan} has no way from `{from}` to `{to}`")]
    NoWay {
        /// Which plan.
        plan: String,
        /// Where it should begin.
        from: String,
        /// Where it should end.
        to: String,
    },
}

impl PathError {
    /// Most names that one lists.
    pub(super) const MOST_CANDIDATES: usize = 50;
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "none yet".to_owned(),
        names => names.join(", "),
    }
}
