//! `tradewind lab`: relays, a controller and clients on an emulated wide-area network.

/// Options of `tradewind lab`.
#[derive(Debug, clap::Args)]
pub(crate) struct LabArgs {}

/// Runs the lab.
pub(crate) fn run(_args: &LabArgs) -> anyhow::Result<()> {
    Ok(())
}
