//! `--dev`: a throw-away network on loopback, whose keys lie in one directory.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use anyhow::Context as _;
use tradewind_controller::{AdminAccess, ControllerConfig};
use tradewind_service::exit::usage;
use tradewind_trust::{AltName, Ca, DEFAULT_LEAF_LIFETIME, EnrolToken, Identity, TokenSigner};

/// Where relays connect.
pub(crate) const LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7400);
/// The HTTP API.
pub(crate) const HTTP: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7401);
/// Where the keys lie, in the working directory.
pub(crate) const DIR: &str = ".tradewind-dev";

/// Makes what is missing in `dir`, overwriting nothing, and gives the configuration from it.
pub(crate) fn prepare(
    dir: &Path,
    listen: SocketAddr,
    now: SystemTime,
) -> anyhow::Result<ControllerConfig> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    if !dir.join("ca.pem").exists() {
        Ca::create("Tradewind development", now)?.save(dir, false)?;
    }
    let ca = Ca::load(dir).map_err(usage)?;

    let (certificate, key) = (dir.join("controller.pem"), dir.join("controller.key"));
    if !certificate.exists() {
        let names = [
            AltName::Ip(Ipv4Addr::LOCALHOST.into()),
            AltName::Dns("localhost".into()),
        ];
        ca.issue_controller(&names, now, DEFAULT_LEAF_LIFETIME)?
            .save(&certificate, &key, false)?;
    }
    let identity = Identity::load(&certificate, &key).map_err(usage)?;

    let (token_key, token_kid) = (dir.join("token.key"), dir.join("token.kid"));
    if !token_key.exists() {
        TokenSigner::generate()?.save(&token_key, false)?;
    }
    let mut signer = TokenSigner::load(&token_key).map_err(usage)?;
    match read(&token_kid)? {
        Some(kid) => signer = signer.with_kid(kid),
        None => write(&token_kid, signer.kid())?,
    }

    let enrol_token = dir.join("enrol-token");
    let token = match read(&enrol_token)? {
        Some(token) => token
            .parse::<EnrolToken>()
            .with_context(|| format!("{}", enrol_token.display()))
            .map_err(usage)?,
        None => {
            let token = EnrolToken::generate()?;
            write(&enrol_token, &token.to_string())?;
            token
        }
    };

    let mut config = ControllerConfig::new(listen, Arc::new(identity), ca.roots());
    config.ca = Some(Arc::new(ca));
    config.reusable_enrol_tokens = vec![token];
    config.token_keys = signer.keys();
    config.state_dir = Some(dir.join("controller"));
    config.admin = AdminAccess::Open;
    Ok(config)
}

/// What to paste next.
pub(crate) fn greeting(dir: &Path, listen: SocketAddr, http: SocketAddr) -> String {
    let mut flags = String::from("--dev");
    if dir != Path::new(DIR) {
        flags.push_str(&format!(
            " --dev-dir {}",
            quoted(&dir.display().to_string())
        ));
    }
    let mut relay_flags = flags.clone();
    if listen != LISTEN {
        relay_flags.push_str(&format!(" --controller {listen}"));
    }
    let mut routes = String::from("tradewind routes");
    if http != HTTP {
        routes.push_str(&format!(" --controller http://{http}"));
    }
    format!(
        "Tradewind controller, development: relays connect to {listen} (UDP), HTTP API at http://{http}
Throw-away keys and certificates lie in {dir}. Not for the Internet.

Next, each in a terminal of its own:
  tradewind-relay {relay_flags} --name tokyo-1 --region jp
  tradewind-relay {relay_flags} --name paris-1 --region fr
  tradewind-relay {relay_flags} --name sydney-1 --region au
then:
  tradewind recv {flags} --as bob
  tradewind send {flags} --as alice bob \"hello\"
  {routes} tokyo-1 paris-1
",
        dir = dir.display()
    )
}

fn quoted(text: &str) -> String {
    match text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c))
    {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Writes a file that is not there yet, for its owner only.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
        .open(path)
        .and_then(|mut file| writeln!(file, "{text}"))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;

    fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
        fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                (name, fs::read(entry.path()).unwrap())
            })
            .collect()
    }

    #[test]
    fn the_directory_is_made_once_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("dev");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600);
        let first = prepare(&dir, LISTEN, now).unwrap();
        let made = contents(&dir);
        let names: Vec<&str> = made.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "ca.key",
                "ca.pem",
                "controller.key",
                "controller.pem",
                "enrol-token",
                "token.key",
                "token.kid"
            ]
        );
        let again = prepare(&dir, LISTEN, now).unwrap();
        assert_eq!(contents(&dir), made);
        assert_eq!(first.token_keys, again.token_keys);
        assert_eq!(first.token_keys.len(), 1);

        // What is missing is made anew from what is there.
        fs::remove_file(dir.join("controller.pem")).unwrap();
        fs::remove_file(dir.join("controller.key")).unwrap();
        prepare(&dir, LISTEN, now).unwrap();
        assert_eq!(contents(&dir)["ca.pem"], made["ca.pem"]);
    }

    #[test]
    fn the_greeting_says_what_to_paste_next() {
        let text = greeting(Path::new(DIR), LISTEN, HTTP);
        assert!(text.contains("\n  tradewind-relay --dev --name tokyo-1 --region jp\n"));
        assert!(text.contains("\n  tradewind recv --dev --as bob\n"));
        assert!(text.contains("\n  tradewind routes tokyo-1 paris-1\n"));
        let elsewhere = greeting(Path::new("/tmp/my dev"), LISTEN, HTTP);
        assert!(
            elsewhere.contains("--dev --dev-dir '/tmp/my dev' --name"),
            "{elsewhere}"
        );
    }
}
