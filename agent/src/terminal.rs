//! Terminals: a shell on a pseudo-terminal, its scrollback, and any number of viewers.
//!
//! A viewer that stalls holds the terminal back a moment, as a slow screen would; then it is dropped and the
//! terminal goes on. One that leaves to come back has its place kept a while: the terminal waits rather than forget
//! what that viewer has not seen.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::clock::unix_ms;
use crate::errors::{Code, Context, Result, fail};
use crate::limits;
use crate::pb;
use crate::pool::{self, Pool, Supervisor};
use crate::program::{Programs, Wanted};
use crate::ring::Ring;
use crate::sync::{async_fd, lock};
use crate::wire::Event;

const CHUNK: usize = 16 << 10;
const VIEWER_QUEUE: usize = 64;
const VIEWER_PATIENCE: Duration = Duration::from_secs(2);
const CLOSE_GRACE: Duration = Duration::from_secs(2);
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// How long a place is kept: so many ticks, which a machine that stands still does not hear.
const PLACE_TICKS: u32 = 50;
const TICK: Duration = Duration::from_millis(100);
/// How long a background process that keeps writing can hold up the end of a terminal.
const DRAIN: Duration = Duration::from_millis(100);

pub struct Terminals {
    pool: Arc<Pool>,
    programs: Arc<Programs>,
    /// Oldest first.
    table: Mutex<Vec<(String, Option<Arc<Terminal>>)>>,
}

pub struct Terminal {
    id: String,
    pid: i32,
    created: SystemTime,
    screen: Mutex<Screen>,
    /// A place is not kept any more.
    moved: Notify,
    master: AsyncFd<OwnedFd>,
    /// One message of input is written as a whole.
    input: tokio::sync::Mutex<()>,
    state: watch::Sender<State>,
    control: mpsc::Sender<Control>,
}

struct Screen {
    scrollback: Ring,
    viewers: HashMap<u64, mpsc::Sender<pb::TerminalOutput>>,
    /// Of viewers that are to come back: the first byte that they have not seen.
    places: HashMap<u64, u64>,
    next_viewer: u64,
    size: (u32, u32),
    closed: bool,
}

/// Where a viewer begins.
#[derive(Clone, Copy, Debug)]
pub enum Begin {
    Scrollback,
    Now,
    Offset(u64),
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    exit_code: Option<i32>,
    /// Nothing that it started lives.
    empty: bool,
}

enum Control {
    HangUp,
    Kill,
}

fn size_of(cols: u32, rows: u32) -> Result<(u32, u32)> {
    let side = |value: u32, default: u32| if value == 0 { default } else { value };
    let (cols, rows) = (side(cols, 80), side(rows, 24));
    if cols > 1000 || rows > 1000 {
        return Err(fail(
            Code::InvalidArgument,
            "a terminal has at most 1000 columns and 1000 rows",
        ));
    }
    Ok((cols, rows))
}

fn winsize((cols, rows): (u32, u32)) -> Winsize {
    Winsize {
        ws_col: cols as u16,
        ws_row: rows as u16,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

impl Terminals {
    pub fn new(pool: Arc<Pool>, programs: Arc<Programs>) -> Terminals {
        Terminals {
            pool,
            programs,
            table: Mutex::default(),
        }
    }

    pub async fn open(&self, request: pb::OpenTerminalRequest) -> Result<Arc<Terminal>> {
        let id = request.terminal_id;
        limits::check_id(&id)?;
        let size = size_of(request.cols, request.rows)?;
        let account = self.programs.account(&request.user)?;
        let login = request.argv.is_empty();
        let shell = login_shell(&account.user.shell);
        let argv = if login {
            vec![shell.clone()]
        } else {
            request.argv
        };
        let term = if request.term.is_empty() {
            "xterm-256color"
        } else {
            &request.term
        };
        let owner = (account.credentials.uid, account.credentials.gid);
        let wanted = Wanted {
            argv,
            cwd: &request.cwd,
            env: &request.env,
            account,
            term: Some(term),
        };
        let mut launch = self.programs.launch(wanted)?;
        if login {
            // A name that starts with a dash tells a shell that it is a login shell.
            let name = shell.rsplit('/').next().unwrap_or("sh");
            launch.argv[0] = format!("-{name}").into_bytes();
        }
        let claim = self.claim(&id)?;
        let (master, slave) = open_pair(size, owner)?;
        let ends = [slave.as_fd(), slave.as_fd(), slave.as_fd()];
        let (supervisor, pid) = self.pool.launch(&launch, ends).await?;
        drop(slave);
        let (control, controls) = mpsc::channel(4);
        let terminal = Arc::new(Terminal {
            id,
            pid,
            created: SystemTime::now(),
            screen: Mutex::new(Screen {
                scrollback: Ring::new(0, limits::SCROLLBACK_BYTES),
                viewers: HashMap::new(),
                places: HashMap::new(),
                next_viewer: 0,
                size,
                closed: false,
            }),
            moved: Notify::new(),
            master: async_fd(master).at("terminal")?,
            input: tokio::sync::Mutex::default(),
            state: watch::Sender::new(State::default()),
            control,
        });
        tokio::spawn(pump(terminal.clone()));
        tokio::spawn(follow(
            terminal.clone(),
            supervisor,
            self.pool.clone(),
            controls,
        ));
        claim.fill(terminal.clone());
        Ok(terminal)
    }

    pub fn get(&self, id: &str) -> Result<Arc<Terminal>> {
        let table = lock(&self.table);
        let found = table.iter().find(|(known, _)| known == id);
        let missing = || fail(Code::TerminalNotFound, format!("no terminal {id:?}"));
        found
            .and_then(|(_, terminal)| terminal.clone())
            .ok_or_else(missing)
    }

    pub fn list(&self) -> Vec<Arc<Terminal>> {
        lock(&self.table)
            .iter()
            .filter_map(|(_, terminal)| terminal.clone())
            .collect()
    }

    pub fn alive(&self) -> usize {
        self.list()
            .iter()
            .filter(|terminal| terminal.exit_code().is_none())
            .count()
    }

    /// Hangs up, then kills what stays; returns when nothing of it lives. Its record goes too.
    pub async fn close(&self, id: &str) -> Result<()> {
        let terminal = self.get(id)?;
        let _ = terminal.control.send(Control::HangUp).await;
        let mut state = terminal.state.subscribe();
        if tokio::time::timeout(CLOSE_GRACE, state.wait_for(|state| state.empty))
            .await
            .is_err()
        {
            let _ = terminal.control.send(Control::Kill).await;
            let _ = tokio::time::timeout(KILL_PATIENCE, state.wait_for(|state| state.empty)).await;
        }
        self.remove(id);
        Ok(())
    }

    fn remove(&self, id: &str) {
        lock(&self.table).retain(|(known, _)| known != id);
    }

    fn claim(&self, id: &str) -> Result<Claim<'_>> {
        let mut table = lock(&self.table);
        if table.iter().any(|(known, _)| known == id) {
            return Err(fail(Code::InvalidState, format!("terminal {id:?} exists")));
        }
        if table.len() >= limits::TERMINALS {
            let over = |entry: &(String, Option<Arc<Terminal>>)| {
                entry
                    .1
                    .as_ref()
                    .is_some_and(|terminal| terminal.exit_code().is_some())
            };
            match table.iter().position(over) {
                Some(oldest) => drop(table.remove(oldest)),
                None => {
                    let message = format!("{} terminals are open already", limits::TERMINALS);
                    return Err(fail(Code::LimitExceeded, message));
                }
            }
        }
        table.push((id.to_owned(), None));
        Ok(Claim {
            terminals: self,
            id: id.to_owned(),
            filled: false,
        })
    }
}

struct Claim<'a> {
    terminals: &'a Terminals,
    id: String,
    filled: bool,
}

impl Claim<'_> {
    fn fill(mut self, terminal: Arc<Terminal>) {
        self.filled = true;
        let mut table = lock(&self.terminals.table);
        if let Some(entry) = table.iter_mut().find(|(id, _)| *id == self.id) {
            entry.1 = Some(terminal);
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.filled {
            self.terminals.remove(&self.id);
        }
    }
}

impl Terminal {
    fn exit_code(&self) -> Option<i32> {
        self.state.borrow().exit_code
    }

    pub fn describe(&self) -> pb::Terminal {
        let screen = lock(&self.screen);
        pb::Terminal {
            terminal_id: self.id.clone(),
            cols: screen.size.0,
            rows: screen.size.1,
            alive: self.exit_code().is_none(),
            exit_code: self.exit_code(),
            pid: self.pid,
            created_at_unix_ms: unix_ms(self.created),
            viewers: screen
                .viewers
                .values()
                .filter(|viewer| !viewer.is_closed())
                .count() as u32,
        }
    }

    pub fn resize(&self, cols: u32, rows: u32) -> Result<()> {
        let size = size_of(cols, rows)?;
        if self.exit_code().is_some() {
            return Err(fail(Code::InvalidState, "the terminal is closed"));
        }
        tcsetwinsize(&self.master, winsize(size)).at("resize")?;
        lock(&self.screen).size = size;
        Ok(())
    }

    pub async fn write(&self, mut data: &[u8]) -> Result<()> {
        let closed = || fail(Code::InvalidState, "the terminal is closed");
        let _whole = self.input.lock().await;
        let mut state = self.state.subscribe();
        while !data.is_empty() {
            let mut ready = tokio::select! {
                ready = self.master.writable() => ready.map_err(|_| closed())?,
                _ = state.wait_for(|state| state.exit_code.is_some()) => return Err(closed()),
            };
            match ready.try_io(|master| Ok(rustix::io::write(master, data)?)) {
                Ok(Ok(count)) => data = &data[count..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => return Err(closed()),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// A viewer: what was shown before, then what comes. Ends with the frame `closed`; once `leaving` says that the
    /// viewer is to come back; or with LIMIT_EXCEEDED for one that does not keep up.
    pub fn view(
        self: &Arc<Self>,
        begin: Begin,
        leaving: oneshot::Receiver<()>,
    ) -> Result<mpsc::Receiver<Result<pb::TerminalOutput>>> {
        let (frames, queue) = mpsc::channel(VIEWER_QUEUE);
        let mut screen = lock(&self.screen);
        let total = screen.scrollback.total();
        let (replayed, dropped) = match begin {
            Begin::Scrollback => (replay(&screen.scrollback), 0),
            Begin::Now => (Vec::new(), 0),
            Begin::Offset(offset) if offset > total => {
                let message = "the offset lies beyond the output so far";
                return Err(fail(Code::InvalidArgument, message));
            }
            Begin::Offset(offset) => {
                screen.places.retain(|_, place| *place != offset);
                self.moved.notify_waiters();
                since(&screen.scrollback, offset)
            }
        };
        screen.next_viewer += 1;
        let number = screen.next_viewer;
        if !screen.closed {
            screen.viewers.insert(number, frames);
        }
        let closed = screen.closed;
        drop(screen);
        let (sender, receiver) = mpsc::channel(1);
        let viewer = Viewer {
            terminal: self.clone(),
            number,
            at: total - replayed.len() as u64,
            sender,
        };
        let scrollback = matches!(begin, Begin::Scrollback);
        let before = Before {
            data: replayed,
            dropped,
            scrollback,
        };
        tokio::spawn(viewer.follow(before, queue, closed, leaving));
        Ok(receiver)
    }

    fn last_frame(&self) -> pb::TerminalOutput {
        pb::TerminalOutput {
            closed: Some(self.describe()),
            ..Default::default()
        }
    }

    /// To the scrollback and to every viewer.
    async fn show(&self, data: &[u8]) {
        let (offset, viewers): (u64, Vec<_>) = {
            let mut screen = lock(&self.screen);
            let offset = screen.scrollback.total();
            screen.scrollback.push(data);
            let viewers = screen.viewers.iter();
            let viewers = viewers.map(|(number, viewer)| (*number, viewer.clone()));
            (offset, viewers.collect())
        };
        if viewers.is_empty() {
            return;
        }
        let data = Bytes::copy_from_slice(data);
        for (number, viewer) in viewers {
            let frame = pb::TerminalOutput {
                data: data.clone(),
                offset,
                ..Default::default()
            };
            let kept = tokio::time::timeout(VIEWER_PATIENCE, viewer.send(frame)).await;
            if !matches!(kept, Ok(Ok(()))) {
                lock(&self.screen).viewers.remove(&number);
            }
        }
    }
}

struct Before {
    data: Vec<u8>,
    dropped: u64,
    scrollback: bool,
}

/// One viewer on its way.
struct Viewer {
    terminal: Arc<Terminal>,
    number: u64,
    /// The next byte it is to see.
    at: u64,
    sender: mpsc::Sender<Result<pb::TerminalOutput>>,
}

impl Viewer {
    async fn follow(
        mut self,
        before: Before,
        mut queue: mpsc::Receiver<pb::TerminalOutput>,
        closed: bool,
        leaving: oneshot::Receiver<()>,
    ) {
        let last = self.watch(before, &mut queue, closed, leaving).await;
        if let Some(frame) = last {
            let _ = self.sender.send(frame).await;
        }
        lock(&self.terminal.screen).viewers.remove(&self.number);
    }

    /// Until it has seen all or is gone; what it is still to be told then.
    async fn watch(
        &mut self,
        mut before: Before,
        queue: &mut mpsc::Receiver<pb::TerminalOutput>,
        closed: bool,
        leaving: oneshot::Receiver<()>,
    ) -> Option<Result<pb::TerminalOutput>> {
        let mut dropped = std::mem::take(&mut before.dropped);
        for piece in before.data.chunks(limits::FRAME_BYTES) {
            let frame = pb::TerminalOutput {
                data: Bytes::copy_from_slice(piece),
                scrollback: before.scrollback,
                offset: self.at,
                dropped: std::mem::take(&mut dropped),
                closed: None,
            };
            if !self.show(frame).await {
                return None;
            }
        }
        drop(before);
        if closed {
            return Some(Ok(self.terminal.last_frame()));
        }
        // Who hangs up without a word does not come back.
        let leaving = async {
            if leaving.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let mut leaving = pin!(leaving);
        loop {
            let next = tokio::select! {
                next = queue.recv() => next,
                () = self.sender.closed() => return None,
                () = &mut leaving => break,
            };
            match next {
                Some(frame) if frame.closed.is_some() => return Some(Ok(frame)),
                Some(frame) => {
                    if !self.show(frame).await {
                        return None;
                    }
                }
                None if lock(&self.terminal.screen).closed => {
                    return Some(Ok(self.terminal.last_frame()));
                }
                None => {
                    let message = "this viewer did not keep up";
                    return Some(Err(fail(Code::LimitExceeded, message)));
                }
            }
        }
        self.keep_place();
        queue.close();
        while let Some(frame) = queue.recv().await {
            if frame.closed.is_some() {
                return Some(Ok(frame));
            }
            if !self.show(frame).await {
                return None;
            }
            self.move_place();
        }
        None
    }

    async fn show(&mut self, frame: pb::TerminalOutput) -> bool {
        let next = frame.offset + frame.data.len() as u64;
        let shown = self.sender.send(Ok(frame)).await.is_ok();
        if shown {
            self.at = next;
        }
        shown
    }

    fn keep_place(&self) {
        let (terminal, number) = (self.terminal.clone(), self.number);
        {
            let mut screen = lock(&terminal.screen);
            screen.viewers.remove(&number);
            screen.places.insert(number, self.at);
        }
        tokio::spawn(async move {
            for _ in 0..PLACE_TICKS {
                tokio::time::sleep(TICK).await;
            }
            lock(&terminal.screen).places.remove(&number);
            terminal.moved.notify_waiters();
        });
    }

    fn move_place(&self) {
        let mut screen = lock(&self.terminal.screen);
        if let Some(place) = screen.places.get_mut(&self.number) {
            *place = self.at;
        }
        self.terminal.moved.notify_waiters();
    }
}

/// What is kept from an offset on, and how much of it is not.
fn since(scrollback: &Ring, mut offset: u64) -> (Vec<u8>, u64) {
    let (mut kept, mut dropped) = (Vec::new(), 0);
    while let Some(piece) = scrollback.piece(offset, usize::MAX) {
        dropped += piece.dropped;
        kept.extend_from_slice(piece.data);
        offset = piece.offset + piece.data.len() as u64;
    }
    (kept, dropped)
}

/// The scrollback, from the start of a line where its beginning has fallen out.
fn replay(scrollback: &Ring) -> Vec<u8> {
    let (mut kept, truncated) = scrollback.snapshot(usize::MAX);
    if truncated && let Some(end) = kept.iter().take(4096).position(|&byte| byte == b'\n') {
        kept.drain(..=end);
    }
    kept
}

fn login_shell(shell: &str) -> String {
    let usable = |path: &str| path.starts_with('/') && std::path::Path::new(path).exists();
    let choices = [shell, "/bin/bash"];
    choices
        .into_iter()
        .find(|path| usable(path))
        .unwrap_or("/bin/sh")
        .to_owned()
}

fn open_pair(size: (u32, u32), (uid, gid): (u32, u32)) -> Result<(OwnedFd, OwnedFd)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .at("cannot open a terminal")?;
    grantpt(&master).at("cannot open a terminal")?;
    unlockpt(&master).at("cannot open a terminal")?;
    let name = ptsname(&master, Vec::new()).at("cannot open a terminal")?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = open(name, flags, Mode::empty()).at("cannot open a terminal")?;
    if uid != rustix::process::geteuid().as_raw() {
        let _ = fchown(&slave, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    }
    if let Ok(mut settings) = tcgetattr(&slave) {
        // So that a backspace removes a whole character.
        settings.input_modes |= InputModes::IUTF8;
        let _ = tcsetattr(&slave, OptionalActions::Now, &settings);
    }
    tcsetwinsize(&slave, winsize(size)).at("cannot size a terminal")?;
    rustix::io::ioctl_fionbio(&master, true).at("cannot open a terminal")?;
    Ok((master, slave))
}

async fn pump(terminal: Arc<Terminal>) {
    let mut state = terminal.state.subscribe();
    let mut buffer = vec![0; CHUNK];
    let mut deadline = None;
    loop {
        let ended = state.borrow_and_update().exit_code.is_some();
        if ended {
            deadline.get_or_insert_with(|| tokio::time::Instant::now() + DRAIN);
        }
        let mut moved = pin!(terminal.moved.notified());
        moved.as_mut().enable();
        let room = {
            let screen = lock(&terminal.screen);
            let place = screen.places.values().copied().min();
            place.map_or(CHUNK as u64, |place| screen.scrollback.room(place))
        };
        if room == 0 {
            moved.await;
            deadline = None;
            continue;
        }
        let space = CHUNK.min(room as usize);
        match rustix::io::read(&terminal.master, &mut buffer[..space]) {
            Ok(count @ 1..) => {
                terminal.show(&buffer[..count]).await;
                tokio::task::consume_budget().await;
                if deadline.is_none_or(|deadline| tokio::time::Instant::now() < deadline) {
                    continue;
                }
            }
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::AGAIN) if !ended => {
                tokio::select! {
                    ready = terminal.master.readable() => match ready {
                        // Forgotten before the next read, as in `output`.
                        Ok(mut ready) => ready.clear_ready(),
                        Err(_) => break,
                    },
                    _ = state.wait_for(|state| state.exit_code.is_some()) => {}
                }
                continue;
            }
            // The last program has closed its end: its exit follows.
            _ if !ended => {
                let _ = state.wait_for(|state| state.exit_code.is_some()).await;
            }
            _ => {}
        }
        break;
    }
    let last = terminal.last_frame();
    let viewers = {
        let mut screen = lock(&terminal.screen);
        screen.closed = true;
        screen.scrollback.shrink();
        std::mem::take(&mut screen.viewers)
    };
    for viewer in viewers.into_values() {
        // One whose queue is full finds it closed, and the terminal with it.
        let _ = viewer.try_send(last.clone());
    }
}

async fn follow(
    terminal: Arc<Terminal>,
    mut supervisor: Supervisor,
    pool: Arc<Pool>,
    mut controls: mpsc::Receiver<Control>,
) {
    let code = |status: i32| match libc::WIFSIGNALED(status) {
        true => 128 + libc::WTERMSIG(status),
        false => libc::WEXITSTATUS(status),
    };
    let mut killing = false;
    loop {
        tokio::select! {
            event = supervisor.event() => match event {
                Ok(Event::Exited { status, empty }) => {
                    let exit_code = Some(code(status));
                    terminal.state.send_replace(State { exit_code, empty });
                    if empty {
                        break;
                    }
                }
                Ok(Event::Empty) => {
                    terminal.state.send_modify(|state| state.empty = true);
                    break;
                }
                Ok(_) => {}
                Err(_) => {
                    // The guest killed the supervisor; the zygote ends what it leaves behind.
                    let exit_code = terminal.exit_code().or(Some(128 + libc::SIGKILL));
                    terminal.state.send_replace(State { exit_code, empty: true });
                    return;
                }
            },
            Some(control) = controls.recv() => match control {
                Control::HangUp => {
                    for signal in [libc::SIGHUP, libc::SIGCONT] {
                        let _ = supervisor.signal(signal, true).await;
                    }
                }
                Control::Kill => {
                    let _ = supervisor.kill_tree().await;
                    killing = true;
                }
            },
            () = pool::stopped_again(), if killing => supervisor.resume(),
        }
    }
    pool.give_back(supervisor);
}
