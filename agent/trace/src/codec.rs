//! Frames as bytes.

use half::f16;
use offramp_core::{AuditResult, ExitView, Facts, Verdict};

use crate::{Frame, Header, PolicyId, Seen, TraceError};

const LABEL: u16 = 1;
const POLICY: u16 = 2;
const TIMES: u16 = 4;
const BOARD: u16 = 8;
const DEADLINE: u16 = 16;
const FEATURES: u16 = 32;
const HURRIED: u16 = 64;
const FAULT: u16 = 128;
const AGREED: u16 = 256;
const DIFFERED: u16 = 512;
const KNOWN: u16 = 1023;

const NOT_TAKEN: u8 = 255;
const NOT_ASKED: u8 = 7;
const BY_RULE: u8 = 8;
const AGREEMENT: u8 = 16;

fn put(out: &mut Vec<u8>, numbers: &[f32]) {
    for number in numbers {
        // One NaN stands for all: what else its bits say is no fact.
        let number = if number.is_nan() { f32::NAN } else { *number };
        out.extend_from_slice(&number.to_bits().to_le_bytes());
    }
}

/// Appends a frame. `before` is the policy of the frame before it in the block.
pub(crate) fn encode(
    header: &Header,
    frame: &Frame,
    before: &mut Option<PolicyId>,
    out: &mut Vec<u8>,
) -> Result<(), TraceError> {
    let facts = &frame.facts;
    let known = |numbers: &[f32]| numbers.iter().any(|number| !number.is_nan());
    let deadline = frame.exits.iter().any(|seen| !seen.view.time_left.is_nan());
    // A policy of nobody cannot be said once one was said: that needs a new block.
    let policy = frame.policy.filter(|policy| *before != Some(*policy));
    let flag = |holds: bool, flag: u16| if holds { flag } else { 0 };
    let flags = flag(frame.label.is_some(), LABEL)
        | flag(policy.is_some(), POLICY)
        | flag(known(&[frame.latency, frame.interval, frame.energy]), TIMES)
        | flag(
            facts.queue_depth > 0 || known(&[facts.temperature, facts.power_budget, facts.battery]),
            BOARD,
        )
        | flag(deadline, DEADLINE)
        | flag(!header.features.is_empty(), FEATURES)
        | flag(frame.hurried, HURRIED)
        | flag(frame.fault, FAULT)
        | flag(frame.audit == AuditResult::Agreed, AGREED)
        | flag(frame.audit == AuditResult::Differed, DIFFERED);
    let exits = frame.exits.len();
    if exits == 0 || exits > header.exits() {
        return Err(TraceError::Misfit("it has no exits, or more than the network"));
    }
    if frame.taken.is_some_and(|taken| usize::from(taken) >= exits) {
        return Err(TraceError::Misfit("it left at an exit that it has not seen"));
    }
    if frame.label.is_some_and(|label| u32::from(label) >= header.classes) {
        return Err(TraceError::Misfit("its label is no class"));
    }
    *before = frame.policy;
    out.extend_from_slice(&flags.to_le_bytes());
    out.push(exits as u8);
    out.push(frame.taken.unwrap_or(NOT_TAKEN));
    out.extend_from_slice(&frame.number.to_le_bytes());
    if let Some(label) = frame.label {
        out.extend_from_slice(&label.to_le_bytes());
    }
    if let Some(PolicyId(id)) = policy {
        out.extend_from_slice(&id);
    }
    if flags & TIMES != 0 {
        put(out, &[frame.latency, frame.interval, frame.energy]);
    }
    if flags & BOARD != 0 {
        out.extend_from_slice(&facts.queue_depth.to_le_bytes());
        put(out, &[facts.temperature, facts.power_budget, facts.battery]);
    }
    put(out, &[frame.exits[0].view.threshold]);
    for (exit, seen) in frame.exits.iter().enumerate() {
        let view = &seen.view;
        let verdict = match seen.verdict {
            None => NOT_ASKED,
            Some(Verdict::GoOn) => 0,
            Some(Verdict::Leave) => 1,
            Some(Verdict::LeaveWithoutLearning) => 2,
            Some(Verdict::Audit) => 3,
        };
        let rule = if seen.by_rule { BY_RULE } else { 0 };
        let agreement = if view.agreement { AGREEMENT } else { 0 };
        if view.class >= header.classes {
            return Err(TraceError::Misfit("an exit names a class that there is not"));
        }
        out.push(verdict | rule | agreement);
        out.extend_from_slice(&(view.class as u16).to_le_bytes());
        put(out, &[view.confidence, view.margin, view.entropy, view.change]);
        if deadline {
            put(out, &[view.time_left]);
        }
        let c = header.features.get(exit).copied().unwrap_or(0);
        if seen.features.len() != c as usize {
            return Err(TraceError::Misfit(
                "an exit has another number of features than its trace",
            ));
        }
        for number in &seen.features {
            out.extend_from_slice(&number.to_bits().to_le_bytes());
        }
    }
    Ok(())
}

/// Takes bytes off the front.
struct Bytes<'a>(&'a [u8]);

const CUT: &str = "a frame is cut";

impl<'a> Bytes<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (front, rest) = self.0.split_first_chunk().ok_or(CUT)?;
        self.0 = rest;
        Ok(*front)
    }

    fn float(&mut self) -> Result<f32, &'static str> {
        self.take().map(u32::from_le_bytes).map(f32::from_bits)
    }

    fn floats<const N: usize>(&mut self) -> Result<[f32; N], &'static str> {
        let mut numbers = [0.0; N];
        for number in &mut numbers {
            *number = self.float()?;
        }
        Ok(numbers)
    }

    fn slice(&mut self, bytes: usize) -> Result<&'a [u8], &'static str> {
        let (front, rest) = self.0.split_at_checked(bytes).ok_or(CUT)?;
        self.0 = rest;
        Ok(front)
    }
}

/// Takes a frame off the front of a block.
pub(crate) fn decode(header: &Header, block: &mut &[u8], before: &mut Option<PolicyId>) -> Result<Frame, &'static str> {
    let mut bytes = Bytes(block);
    let flags = u16::from_le_bytes(bytes.take()?);
    let [exits, taken] = bytes.take()?;
    if flags & !KNOWN != 0 || (flags & FEATURES != 0) == header.features.is_empty() {
        return Err("a frame has flags that there are not");
    }
    if exits == 0 || usize::from(exits) > header.exits() || (taken != NOT_TAKEN && taken >= exits) {
        return Err("a frame has exits that its network has not");
    }
    let number = u64::from_le_bytes(bytes.take()?);
    let has = |flag: u16| flags & flag != 0;
    let label = has(LABEL).then(|| bytes.take().map(u16::from_le_bytes)).transpose()?;
    if label.is_some_and(|label| u32::from(label) >= header.classes) {
        return Err("a label is no class");
    }
    if has(POLICY) {
        *before = Some(PolicyId(bytes.take()?));
    }
    let [latency, interval, energy] = if has(TIMES) { bytes.floats()? } else { [f32::NAN; 3] };
    let mut facts = Facts::default();
    if has(BOARD) {
        facts.queue_depth = u32::from_le_bytes(bytes.take()?);
        [facts.temperature, facts.power_budget, facts.battery] = bytes.floats()?;
    }
    let threshold = bytes.float()?;
    let mut frame = Frame {
        number,
        label,
        policy: *before,
        facts,
        taken: (taken != NOT_TAKEN).then_some(taken),
        latency,
        interval,
        energy,
        hurried: has(HURRIED),
        fault: has(FAULT),
        audit: match (has(AGREED), has(DIFFERED)) {
            (false, false) => AuditResult::None,
            (true, false) => AuditResult::Agreed,
            (false, true) => AuditResult::Differed,
            (true, true) => return Err("an audit both agrees and differs"),
        },
        exits: Vec::with_capacity(exits.into()),
    };
    for exit in 0..usize::from(exits) {
        let [verdict] = bytes.take()?;
        let class = u32::from(u16::from_le_bytes(bytes.take()?));
        if class >= header.classes {
            return Err("an exit names a class that there is not");
        }
        let [confidence, margin, entropy, change] = bytes.floats()?;
        let time_left = if has(DEADLINE) { bytes.float()? } else { f32::NAN };
        let c = header.features.get(exit).copied().unwrap_or(0) as usize;
        let features = bytes.slice(2 * c)?.as_chunks().0;
        frame.exits.push(Seen {
            view: ExitView {
                exit: 0,
                exits: 0,
                class,
                confidence,
                margin,
                entropy,
                agreement: verdict & AGREEMENT != 0,
                change,
                cost: 0.0,
                next_cost: 0.0,
                time_left,
                queue_depth: 0,
                temperature: 0.0,
                power_budget: 0.0,
                battery: 0.0,
                threshold: 0.0,
            },
            by_rule: verdict & BY_RULE != 0,
            verdict: match verdict & 7 {
                0 => Some(Verdict::GoOn),
                1 => Some(Verdict::Leave),
                2 => Some(Verdict::LeaveWithoutLearning),
                3 => Some(Verdict::Audit),
                NOT_ASKED => None,
                _ => return Err("a verdict is none"),
            },
            features: features.iter().map(|bits| f16::from_le_bytes(*bits)).collect(),
        });
    }
    frame.complete_views(header, threshold);
    *block = bytes.0;
    Ok(frame)
}
