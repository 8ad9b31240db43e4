//! `tradewind-relay health`: a container has no HTTP client, so this is one, just large enough.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tradewind_host::{Host, OsHost};

const PATIENCE: Duration = Duration::from_secs(3);
const LONGEST_ANSWER: u64 = 64 << 10;

/// Good when the relay at `admin` is ready; else says why not.
pub(crate) async fn check(admin: SocketAddr) -> anyhow::Result<()> {
    let host: &dyn Host = &OsHost;
    let answer = host
        .timeout(PATIENCE, get(admin, "/readyz"))
        .await
        .with_context(|| format!("the relay at {admin}"))?
        .with_context(|| format!("the relay at {admin} does not answer"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).unwrap_or_default();
    match status {
        "200" => {
            println!("{}", body.trim());
            Ok(())
        }
        "503" => bail!("not ready: {}", body.trim()),
        _ => bail!("{admin} answers, but not as a relay's admin listener"),
    }
}

async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0: the answer ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST_ANSWER).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
