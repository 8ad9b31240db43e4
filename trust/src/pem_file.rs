//! Files of certificates and keys: reading with clear errors, writing at once or not at all.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use crate::TrustError;

/// Largest file that is read: certificates and keys are a few KiB.
const MAX_FILE: u64 = 1 << 20;

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let digit = |b: u8| (b as char).to_digit(16);
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(out)
}

pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(label, der), config)
}

/// # Errors
/// [`TrustError::Missing`] or [`TrustError::Io`].
pub(crate) fn read(
    path: &Path,
    what: &'static str,
    hint: &'static str,
) -> Result<Vec<u8>, TrustError> {
    let io = |source| TrustError::Io {
        action: "read",
        what,
        path: path.to_owned(),
        source,
    };
    let meta = fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => TrustError::Missing {
            what,
            path: path.to_owned(),
            hint,
        },
        _ => io(error),
    })?;
    if meta.len() > MAX_FILE {
        return Err(io(io::Error::other("it is larger than 1 MiB")));
    }
    fs::read(path).map_err(io)
}

/// Writes a file whole (a temporary one, then a rename), readable by its owner only if `secret`.
///
/// # Errors
/// [`TrustError::Exists`] when it is there and `force` is off; [`TrustError::Io`].
pub(crate) fn write(
    path: &Path,
    what: &'static str,
    content: &[u8],
    secret: bool,
    force: bool,
) -> Result<(), TrustError> {
    let io = |source| TrustError::Io {
        action: "write",
        what,
        path: path.to_owned(),
        source,
    };
    if !force && path.symlink_metadata().is_ok() {
        return Err(TrustError::Exists {
            path: path.to_owned(),
        });
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(io)?;
    }
    let temporary = temporary_beside(path);
    let _ = fs::remove_file(&temporary);
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(if secret { 0o600 } else { 0o644 });
    }
    let mut file = options.open(&temporary).map_err(io)?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(io)?;
    if force {
        fs::rename(&temporary, path).map_err(io)
    } else {
        // A hard link fails where a rename would replace: nobody's file is lost in a race.
        let linked = fs::hard_link(&temporary, path);
        let _ = fs::remove_file(&temporary);
        linked.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => TrustError::Exists {
                path: path.to_owned(),
            },
            _ => io(error),
        })
    }
}

fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    path.with_file_name(name)
}
