//! Tells systemd (`Type=notify`) how the service is doing. Does nothing when not run by systemd.

use sd_notify::NotifyState;

/// The service is up.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// The service reads its configuration again; [`ready`] follows.
pub fn reloading() {
    let mut states = vec![NotifyState::Reloading];
    states.extend(NotifyState::monotonic_usec_now());
    send(&states);
}

/// The service begins to end.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// One line for `systemctl status`.
pub fn status(line: &str) {
    send(&[NotifyState::Status(&line.replace('\n', " "))]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell systemd");
    }
}
