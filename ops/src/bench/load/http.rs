//! HTTP/1.1 by hand over one kept connection: what a client library spends would be taken for the server's.

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

/// One connection.
pub(crate) struct Conn {
    stream: BufReader<TcpStream>,
    head: String,
}

impl Conn {
    /// Connects to `host:port`; requests carry this token.
    pub(crate) async fn open(address: &str, token: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::with_capacity(4096, stream),
            head: format!("host: {address}\r\nauthorization: Bearer {token}\r\n"),
        })
    }

    /// One `GET`; the status and the body.
    pub(crate) async fn get(&mut self, path: &str) -> Result<(u16, Vec<u8>)> {
        let request = format!("GET {path} HTTP/1.1\r\n{}\r\n", self.head);
        self.stream.write_all(request.as_bytes()).await?;
        answer(&mut self.stream).await
    }

    /// One `POST`; the status and the body.
    pub(crate) async fn post(&mut self, path: &str, kind: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        let mut request = Vec::with_capacity(body.len() + 512);
        request.extend_from_slice(
            format!(
                "POST {path} HTTP/1.1\r\n{}content-type: {kind}\r\ncontent-length: {}\r\n\r\n",
                self.head,
                body.len()
            )
            .as_bytes(),
        );
        request.extend_from_slice(body);
        // Written beside reading: a long answer may begin before a long body has ended.
        let (mut read, mut write) = tokio::io::split(&mut self.stream);
        let writing = async { write.write_all(&request).await.map_err(anyhow::Error::from) };
        let (_, answer) = tokio::try_join!(writing, answer(&mut read))?;
        Ok(answer)
    }
}

async fn answer<R: tokio::io::AsyncRead + Unpin>(read: &mut R) -> Result<(u16, Vec<u8>)> {
    let mut read = BufReader::new(read);
    let mut line = String::new();
    read.read_line(&mut line).await?;
    let status =
        line.split(' ').nth(1).and_then(|s| s.parse().ok()).with_context(|| format!("no status in {line:?}"))?;
    let (mut length, mut chunked) = (0, false);
    loop {
        line.clear();
        if read.read_line(&mut line).await? == 0 {
            bail!("the connection ended within the head");
        }
        let header = line.trim_end().to_ascii_lowercase();
        match header.split_once(": ") {
            Some(("content-length", n)) => length = n.parse()?,
            Some(("transfer-encoding", "chunked")) => chunked = true,
            _ if header.is_empty() => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    read.read_exact(&mut body).await?;
    while chunked {
        line.clear();
        read.read_line(&mut line).await?;
        let size = usize::from_str_radix(line.trim(), 16)?;
        let at = body.len();
        body.resize(at + size + 2, 0);
        read.read_exact(&mut body[at..]).await?;
        body.truncate(at + size);
        chunked = size > 0;
    }
    Ok((status, body))
}

/// A batch request's body of one item a line.
pub(crate) fn batch(items: impl Iterator<Item = (String, String)>, priority: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for (to, content) in items {
        body.extend_from_slice(
            format!("{{\"to\":\"{to}\",\"content\":\"{content}\",\"priority\":\"{priority}\"}}\n").as_bytes(),
        );
    }
    body
}

/// How many items of a batch's answer were accepted.
pub(crate) fn count_accepted(answer: &[u8]) -> u64 {
    answer.split(|b| *b == b'\n').filter(|line| line.windows(12).any(|w| w == b"\"status\":202")).count() as u64
}
