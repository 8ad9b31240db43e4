//! What the application says its traffic is, and what a route is good at.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// What the application says the traffic is. Decides priority, deadline, profile, and the row it is
/// accounted under. Two bits on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Class {
    /// Speech: first in every queue.
    Audio = 0,
    /// Chat messages.
    Message = 1,
    /// Moving pictures.
    Video = 2,
    /// Whatever can wait.
    Bulk = 3,
}

impl Class {
    /// All classes, most urgent first. The order is the priority in every queue.
    pub const ALL: [Self; 4] = [Self::Audio, Self::Message, Self::Video, Self::Bulk];

    /// From the two bits of a header; higher bits are ignored.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 0b11 {
            0 => Self::Audio,
            1 => Self::Message,
            2 => Self::Video,
            _ => Self::Bulk,
        }
    }

    /// Its name in configuration, metrics and tokens.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Audio => "audio",
            Self::Message => "message",
            Self::Video => "video",
            Self::Bulk => "bulk",
        }
    }

    /// The age at which a *datagram* of this class helps nobody any more and is dropped. Packets of
    /// message lanes have a time-to-live of their own, kept by the SDKs.
    #[must_use]
    pub const fn deadline(self) -> Duration {
        match self {
            // Beyond one second (G.114 calls 400 ms the limit for speech) nobody is talking any
            // more; longer than any sane path, so that only queues can cause it.
            Self::Audio => Duration::from_secs(1),
            Self::Video => Duration::from_secs(2),
            Self::Message => Duration::from_secs(5),
            Self::Bulk => Duration::from_secs(10),
        }
    }

    /// The profile that serves it best when policy says nothing.
    #[must_use]
    pub const fn profile(self) -> Profile {
        match self {
            Self::Audio | Self::Message | Self::Video => Profile::Realtime,
            Self::Bulk => Profile::Economy,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Class {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|class| class.name() == s)
            .ok_or_else(|| format!("no class is called {s:?}: use audio, message, video or bulk"))
    }
}

/// What a route is good at. Two bits on the wire.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Profile {
    /// Latency and loss first.
    #[default]
    Realtime = 0,
    /// Price first, within a latency bound.
    Economy = 1,
}

impl Profile {
    /// From the two bits of a header; `None` for values no version has given a meaning.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits & 0b11 {
            0 => Some(Self::Realtime),
            1 => Some(Self::Economy),
            _ => None,
        }
    }
}
