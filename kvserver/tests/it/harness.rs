//! A server as child process, and a client that reads replies into text.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub const BINARY: &str = env!("CARGO_BIN_EXE_kvserver");

/// A running server; killed when dropped.
pub struct Server {
    pub child: Child,
    pub port: u16,
    dir: Option<TempDir>,
}

impl Server {
    pub fn start() -> Server {
        Server::with(&[])
    }

    pub fn with(arguments: &[&str]) -> Server {
        Server::in_dir(tempfile::tempdir().unwrap(), arguments)
    }

    pub fn in_dir(dir: TempDir, arguments: &[&str]) -> Server {
        let mut server = Server::at(&dir.path().join("db"), &[&["--memory", "64MiB"], arguments].concat());
        server.dir = Some(dir);
        server
    }

    /// A server on the directory `path`, which the caller keeps.
    pub fn at(path: &std::path::Path, arguments: &[&str]) -> Server {
        Server::of(Command::new(BINARY), path, arguments)
    }

    /// As `at`, started by a command that ends with the server's name.
    pub fn of(mut command: Command, path: &std::path::Path, arguments: &[&str]) -> Server {
        let mut child = command
            .args(["serve", "--listen", "127.0.0.1:0", "--dir"])
            .arg(path)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, address) = line.split_once("listening on")?;
            address.split_whitespace().next()?.rsplit(':').next()?.parse().ok()
        });
        // Whatever else it prints is not to block it.
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, port: port.expect("the server says where it listens"), dir: None }
    }

    pub fn path(&self) -> std::path::PathBuf {
        self.dir.as_ref().unwrap().path().join("db")
    }

    pub fn client(&self) -> Client {
        Client::connect(self.port)
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Stops it with SIGTERM, and returns its directory and exit status.
    pub fn stop(mut self) -> (TempDir, ExitStatus) {
        self.signal("-TERM");
        let status = self.wait();
        (self.dir.take().unwrap(), status)
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }

    /// Resident bytes.
    pub fn resident(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    /// Resident bytes that are no file's.
    pub fn anonymous(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let (_, kib) = status.split_once("RssAnon:").unwrap();
        kib.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
    }

    pub fn take_dir(mut self) -> TempDir {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.dir.take().unwrap()
    }
}

pub fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "the process does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection that speaks RESP by hand.
pub struct Client {
    pub stream: BufReader<TcpStream>,
}

/// The bytes of a request.
pub fn request<A: AsRef<[u8]>>(arguments: &[A]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        out.extend(format!("${}\r\n", argument.as_ref().len()).bytes());
        out.extend(argument.as_ref());
        out.extend(b"\r\n");
    }
    out
}

impl Client {
    pub fn connect(port: u16) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream: BufReader::new(stream) }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    fn line(&mut self, raw: &mut Vec<u8>) -> String {
        let start = raw.len();
        let n = self.stream.read_until(b'\n', raw).unwrap();
        assert!(n > 0, "the server closed the connection");
        String::from_utf8_lossy(&raw[start..]).trim_end().to_string()
    }

    /// One reply, exactly as sent.
    pub fn raw(&mut self) -> Vec<u8> {
        let mut raw = Vec::new();
        self.read_into(&mut raw);
        raw
    }

    fn read_into(&mut self, raw: &mut Vec<u8>) {
        let line = self.line(raw);
        let (kind, rest) = line.split_at(1);
        let n = rest.parse::<i64>().unwrap_or(-1);
        match kind {
            "$" | "=" if n >= 0 => {
                let start = raw.len();
                raw.resize(start + n as usize + 2, 0);
                self.stream.read_exact(&mut raw[start..]).unwrap();
            }
            "*" | "~" => (0..n).for_each(|_| self.read_into(raw)),
            "%" => (0..2 * n).for_each(|_| self.read_into(raw)),
            _ => {}
        }
    }

    /// One reply as text: `+OK`, `-ERR …`, `:1`, `"bytes"`, `nil`, `[a b]`.
    pub fn reply(&mut self) -> String {
        let raw = self.raw();
        let mut rest = &raw[..];
        render(&mut rest)
    }

    /// Sends one command and reads its reply.
    pub fn call<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> String {
        self.send(&request(arguments));
        self.reply()
    }

    /// As `call`, with the arguments separated by blanks.
    pub fn run(&mut self, command: &str) -> String {
        self.call(&command.split(' ').collect::<Vec<_>>())
    }

    /// Runs a script of `command => reply` lines.
    #[track_caller]
    pub fn script(&mut self, script: &str) {
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (command, expected) = line.split_once(" => ").unwrap();
            assert_eq!(self.run(command.trim()).trim_end(), expected.trim(), "{command}");
        }
    }

    /// Everything until the server closes.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset is a way to close, too.
        let _ = self.stream.read_to_end(&mut rest);
        rest
    }
}

fn render(rest: &mut &[u8]) -> String {
    let end = rest.iter().position(|&b| b == b'\n').unwrap();
    let line = String::from_utf8_lossy(&rest[..end - 1]).into_owned();
    *rest = &rest[end + 1..];
    let (kind, text) = line.split_at(1);
    let n = text.parse::<i64>().unwrap_or(-1);
    let mut many = |n: i64| (0..n).map(|_| render(rest)).collect::<Vec<_>>().join(" ");
    match kind {
        "_" => "nil".into(),
        "$" | "*" if n < 0 => "nil".into(),
        "*" => format!("[{}]", many(n)),
        "~" => format!("~[{}]", many(n)),
        "%" => format!("{{{}}}", many(2 * n)),
        "$" | "=" => {
            let bytes = &rest[..n as usize];
            *rest = &rest[n as usize + 2..];
            format!("\"{}\"", bytes.escape_ascii())
        }
        _ => line,
    }
}
