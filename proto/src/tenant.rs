//! Which tenant a packet belongs to, in few bits.

/// A tenant (app) as packets between relays name it: a hash of 8 bits, so that a relay on the way can
/// be fair between tenants without knowing them. Two tenants may have the same one; they then share one
/// tenant's part of a full link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(pub u8);

impl Tenant {
    /// Not known: packets of the relays themselves, and of relays that do not say it.
    pub const NONE: Self = Self(0);

    /// The tenant of an app, 1 to 255: 1 + ⌊h·255 / 2³²⌋, where h is the high half of the FNV-1a hash
    /// (64 bits) of the app's name, finished as SplitMix64 does (FNV alone spreads names that differ in
    /// their last letters badly).
    #[must_use]
    pub fn of(app: &str) -> Self {
        let hash = app.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let hash = hash ^ hash >> 31;
        Self(1 + (((hash >> 32) * 255) >> 32) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_app_has_a_tenant_and_they_are_spread() {
        let mut apps = [0_u32; 256];
        for n in 0..25_500 {
            apps[usize::from(Tenant::of(&format!("app-{n}")).0)] += 1;
        }
        assert_eq!(apps[0], 0, "0 is nobody's");
        // 100 each, with a standard deviation of 10.
        assert!(
            apps[1..].iter().all(|count| (50..=150).contains(count)),
            "{apps:?}"
        );
        assert_ne!(Tenant::of(""), Tenant::NONE);
        // As the protocol's description has it.
        assert_eq!(Tenant::of("chat"), Tenant(209));
    }
}
