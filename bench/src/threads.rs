//! Threads with a runtime of their own, and how much they have worked.

use std::time::Duration;

use anyhow::{Context as _, ensure};

/// Runs on this thread, in a runtime of its own.
pub(crate) fn alone<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?
        .block_on(future)
}

/// Runs what must not share a thread with the rest: a receiver that its sender must not hold up, or
/// what is to be measured. `name` has 15 characters at most.
pub(crate) fn on_a_thread(
    name: &'static str,
    future: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) -> anyhow::Result<()> {
    let work = move || {
        if let Err(error) = alone(future) {
            eprintln!("{name} has failed: {error:#}");
        }
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .context("cannot start a thread")?;
    Ok(())
}

/// What the threads of these names, one of each, have worked so far (Linux: `schedstat`).
pub(crate) fn cpu_time(names: &[&str]) -> anyhow::Result<Duration> {
    let mut found = 0;
    let mut total = Duration::ZERO;
    for task in std::fs::read_dir("/proc/self/task").context("this needs Linux")? {
        let task = task?.path();
        let comm = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
        if names.contains(&comm.trim()) {
            let stat = std::fs::read_to_string(task.join("schedstat"))
                .context("this kernel does not say how long threads have worked")?;
            total += worked(&stat)?;
            found += 1;
        }
    }
    ensure!(
        found == names.len(),
        "{found} threads called {} were found",
        names.join(" or ")
    );
    Ok(total)
}

/// What all threads of a process have worked so far (Linux: `schedstat`). Threads that have ended are
/// not in it.
pub(crate) fn process_cpu_time(id: u32) -> anyhow::Result<Duration> {
    let mut total = Duration::ZERO;
    for task in std::fs::read_dir(format!("/proc/{id}/task")).context("this needs Linux")? {
        let stat = std::fs::read_to_string(task?.path().join("schedstat"));
        // A thread may end between the two.
        if let Ok(stat) = stat {
            total += worked(&stat)?;
        }
    }
    Ok(total)
}

/// The first number of a `schedstat`: time on a processor.
fn worked(stat: &str) -> anyhow::Result<Duration> {
    let ns = stat.split(' ').next().and_then(|ns| ns.parse().ok());
    Ok(Duration::from_nanos(
        ns.context("an unknown form of schedstat")?,
    ))
}
