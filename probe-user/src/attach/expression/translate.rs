//! Classic BPF into eBPF, for the stand-in `filter::expression` of our eBPF object.
//!
//! Classic BPF has an accumulator A, an index X and sixteen words of scratch memory; a load beyond the packet and a
//! division by zero end it with 0. The translation keeps A, X and all else in registers that a call may overwrite,
//! and the scratch memory beside the packet: it needs no stack.
//!
//! Source: `bpf_filter.c` of libpcap; `Documentation/bpf/standardization/instruction-set.rst` of Linux.
use std::mem::offset_of;

use anyhow::{Context as _, Result, bail, ensure};
use probe_common::{CAPTURE_MAX, Capture};

use crate::pcap::Classic;

/// As many as the kernel takes for a socket (`BPF_MAXINSNS`).
const INSTRUCTIONS_MAX: usize = 4096;

// eBPF's registers.
const A: u8 = 0;
const CAPTURE: u8 = 1;
const X: u8 = 2;
const OFFSET: u8 = 3;
const END: u8 = 4;
const CAPTURED: u8 = 5;

// Classes, the same in both but for the last two, which are eBPF's alone.
const LD: u8 = 0x00;
const LDX: u8 = 0x01;
const ST: u8 = 0x02;
const STX: u8 = 0x03;
const ALU: u8 = 0x04;
const JMP: u8 = 0x05;
const JMP32: u8 = 0x06;
const ALU64: u8 = 0x07;
/// Classic BPF's classes with the numbers of the last two.
const RET: u8 = 0x06;
const MISC: u8 = 0x07;

const MEM: u8 = 0x60;
/// The right-hand side is a register.
const REG: u8 = 0x08;
const W: u8 = 0x00;
const H: u8 = 0x08;
const B: u8 = 0x10;

const ADD: u8 = 0x00;
const DIV: u8 = 0x30;
const AND: u8 = 0x50;
const LSH: u8 = 0x60;
const RSH: u8 = 0x70;
const NEG: u8 = 0x80;
const MOD: u8 = 0x90;
const XOR: u8 = 0xa0;
const MOV: u8 = 0xb0;
/// To network order and back, with `REG`.
const BE: u8 = 0xd0;

const JA: u8 = 0x00;
const JEQ: u8 = 0x10;
const JGT: u8 = 0x20;
const JGE: u8 = 0x30;
const JSET: u8 = 0x40;
const JNE: u8 = 0x50;
const JLT: u8 = 0xa0;
const JLE: u8 = 0xb0;
const EXIT: u8 = 0x90;

/// One eBPF instruction.
#[derive(Clone, Copy, Debug)]
struct Extended {
    code: u8,
    dst: u8,
    src: u8,
    off: u16,
    imm: u32,
}

impl Extended {
    fn bytes(self) -> [u8; 8] {
        let [off_low, off_high] = self.off.to_le_bytes();
        let [a, b, c, d] = self.imm.to_le_bytes();
        [self.code, self.src << 4 | self.dst, off_low, off_high, a, b, c, d]
    }
}

/// The right-hand side of an operation.
#[derive(Clone, Copy)]
enum Operand {
    Reg(u8),
    Imm(u32),
}

/// Where a jump goes.
#[derive(Clone, Copy)]
enum To {
    /// An instruction of the classic program.
    Line(usize),
    /// An instruction of this one.
    Here(usize),
    NoMatch,
}

/// What to load of the packet.
#[derive(Clone, Copy)]
struct Part {
    /// Bytes, and how eBPF calls so many.
    size: u32,
    width: u8,
}

/// Translates a program that ends in a return on every way. What it returns is 0 or not.
///
/// # Errors
///
/// For what libpcap does not make of an expression, or makes of none that can run in the kernel: loops.
pub(super) fn translate(program: &[Classic]) -> Result<Vec<u8>> {
    ensure!(
        program.len() <= INSTRUCTIONS_MAX,
        "it has {} instructions, of {INSTRUCTIONS_MAX} that are allowed",
        program.len()
    );
    let reached = reached(program)?;
    let mut translation = Translation { starts: vec![0; program.len()], ..Translation::default() };
    translation.begin(program);
    for (line, instruction) in program.iter().enumerate().filter(|(line, _)| reached[*line]) {
        translation.starts[line] = translation.code.len();
        translation.instruction(line, *instruction)?;
    }
    translation.finish()
}

/// Which instructions can be reached: the kernel refuses others.
fn reached(program: &[Classic]) -> Result<Vec<bool>> {
    let mut reached = vec![false; program.len()];
    *reached.first_mut().context("it is empty")? = true;
    for (line, instruction) in program.iter().enumerate() {
        if !reached[line] {
            continue;
        }
        for next in successors(line, *instruction) {
            *reached
                .get_mut(next)
                .with_context(|| format!("instruction {line} leads out of it, or back"))? = true;
        }
    }
    Ok(reached)
}

fn successors(line: usize, Classic { code, jt, jf, k }: Classic) -> Vec<usize> {
    let after = |skipped: usize| line.saturating_add(1).saturating_add(skipped);
    match (code as u8 & 0x07, code as u8 & 0xf0) {
        (RET, _) => vec![],
        // A loop's is negative: beyond the end.
        (JMP, JA) => vec![after(k as usize)],
        (JMP, _) => vec![after(jt.into()), after(jf.into())],
        _ => vec![after(0)],
    }
}

#[derive(Default)]
struct Translation {
    code: Vec<Extended>,
    /// Where each classic instruction begins.
    starts: Vec<usize>,
    /// Jumps whose offset is still open.
    jumps: Vec<(usize, To)>,
}

impl Translation {
    fn begin(&mut self, program: &[Classic]) {
        self.load(CAPTURED, W, CAPTURE, offset_of!(Capture, captured));
        self.alu(MOV, A, Operand::Imm(0));
        self.alu(MOV, X, Operand::Imm(0));
        // Classic memory begins as zeros; this has what the packet before left in it.
        let is_memory = |one: &&Classic| matches!(one.code as u8 & 0xe7, 0x60 | 0x61);
        let mut slots: Vec<u32> = program.iter().filter(is_memory).map(|one| one.k).collect();
        slots.sort_unstable();
        slots.dedup();
        for slot in slots.into_iter().filter(|slot| *slot < 16) {
            self.emit(ST | MEM | W, CAPTURE, 0, memory(slot) as u16, 0);
        }
    }

    fn instruction(&mut self, line: usize, classic: Classic) -> Result<()> {
        let Classic { code, k, .. } = classic;
        let unknown = || format!("instruction {line} has the code {code:#06x}, which is unknown");
        let code = u8::try_from(code).ok().with_context(unknown)?;
        let operand = if code & REG == 0 { Operand::Imm(k) } else { Operand::Reg(X) };
        match (code & 0x07, code & 0xe0) {
            (LD, 0x20) => self.load_at(A, part(code).with_context(unknown)?, k),
            (LD, 0x40) => self.load_behind_x(part(code).with_context(unknown)?, k),
            (LDX, 0xa0) if code == 0xb1 => {
                self.load_at(X, Part { size: 1, width: B }, k);
                self.alu(AND, X, Operand::Imm(0xf));
                self.alu(LSH, X, Operand::Imm(2));
            }
            (LD | LDX, mode) if code & 0x18 == W => {
                let register = if code & 0x07 == LD { A } else { X };
                match mode {
                    0x00 => self.alu(MOV, register, Operand::Imm(k)),
                    0x60 => self.load(register, W, CAPTURE, memory(slot(line, k)?)),
                    0x80 => self.load(register, W, CAPTURE, offset_of!(Capture, packet_len)),
                    _ => bail!(unknown()),
                }
            }
            (ST | STX, 0) if code & 0x18 == 0 => {
                let register = if code == ST { A } else { X };
                self.emit(STX | MEM | W, CAPTURE, register, memory(slot(line, k)?) as u16, 0);
            }
            (ALU, _) => self.arithmetic(code & 0xf0, operand).with_context(unknown)?,
            (JMP, _) => self.jump(line, classic, operand).with_context(unknown)?,
            (RET, 0) if code == RET => {
                self.alu(MOV, A, Operand::Imm((k != 0).into()));
                self.emit(JMP | EXIT, 0, 0, 0, 0);
            }
            (RET, 0) if code == RET | 0x10 => self.emit(JMP | EXIT, 0, 0, 0, 0),
            (MISC, 0) if code == MISC => self.alu(MOV, X, Operand::Reg(A)),
            (MISC, 0x80) if code == MISC | 0x80 => self.alu(MOV, A, Operand::Reg(X)),
            _ => bail!(unknown()),
        }
        Ok(())
    }

    /// Loads from a fixed place of the packet.
    fn load_at(&mut self, register: u8, part: Part, at: u32) {
        let end = at.saturating_add(part.size).min(i32::MAX as u32);
        self.jump_if(JMP, JLT, CAPTURED, Operand::Imm(end), To::NoMatch);
        // Further on it never comes, and the verifier would refuse the load.
        if end as usize <= CAPTURE_MAX {
            self.load(register, part.width, CAPTURE, offset_of!(Capture, bytes) + at as usize);
            self.swap(register, part);
        }
    }

    /// Loads from a place that X is added to.
    fn load_behind_x(&mut self, part: Part, at: u32) {
        let last = CAPTURE_MAX as u32 - part.size;
        if at > last {
            // More than is ever captured, so this ends it.
            self.jump_if(JMP, JLT, CAPTURED, Operand::Imm(i32::MAX as u32), To::NoMatch);
            return;
        }
        self.emit(ALU64 | MOV | REG, OFFSET, X, 0, 0);
        self.emit(ALU64 | ADD, OFFSET, 0, 0, at);
        // For the verifier, which does not know what `CAPTURED` is at most.
        self.jump_if(JMP, JGT, OFFSET, Operand::Imm(last), To::NoMatch);
        self.emit(ALU64 | MOV | REG, END, OFFSET, 0, 0);
        self.emit(ALU64 | ADD, END, 0, 0, part.size);
        self.jump_if(JMP, JGT, END, Operand::Reg(CAPTURED), To::NoMatch);
        self.emit(ALU64 | ADD | REG, OFFSET, CAPTURE, 0, 0);
        self.load(A, part.width, OFFSET, offset_of!(Capture, bytes));
        self.swap(A, part);
    }

    /// From network order to the host's.
    fn swap(&mut self, register: u8, part: Part) {
        if part.size > 1 {
            self.emit(ALU | BE | REG, register, 0, 0, part.size * 8);
        }
    }

    /// `None` for an operation that there is not.
    fn arithmetic(&mut self, operation: u8, operand: Operand) -> Option<()> {
        match (operation, operand) {
            (DIV | MOD, Operand::Imm(0)) => return None,
            (DIV | MOD, Operand::Reg(x)) => {
                self.jump_if(JMP32, JEQ, x, Operand::Imm(0), To::NoMatch);
                self.alu(operation, A, operand);
            }
            // Shifted out; eBPF would take the amount modulo 32.
            (LSH | RSH, Operand::Imm(32..)) => self.alu(MOV, A, Operand::Imm(0)),
            (LSH | RSH, Operand::Reg(x)) => {
                let end = self.code.len() + 4;
                self.jump_if(JMP32, JGT, x, Operand::Imm(31), To::Here(end - 1));
                self.alu(operation, A, operand);
                self.jump_to(To::Here(end));
                self.alu(MOV, A, Operand::Imm(0));
            }
            (NEG, _) => self.alu(NEG, A, Operand::Imm(0)),
            (ADD..=RSH | MOD | XOR, _) => self.alu(operation, A, operand),
            _ => return None,
        }
        Some(())
    }

    /// `None` for a condition that there is not.
    fn jump(&mut self, line: usize, Classic { code, jt, jf, k }: Classic, operand: Operand) -> Option<()> {
        let after = |skipped: u32| To::Line(line + 1 + skipped as usize);
        let condition = code as u8 & 0xf0;
        if condition == JA {
            self.jump_to(after(k));
            return Some(());
        }
        let opposite = match condition {
            JEQ => Some(JNE),
            JGT => Some(JLE),
            JGE => Some(JLT),
            JSET => None,
            _ => return None,
        };
        match (jt, jf, opposite) {
            (jt, jf, _) if jt == jf => self.jump_to(after(jt.into())),
            (0, jf, Some(opposite)) => self.jump_if(JMP32, opposite, A, operand, after(jf.into())),
            (jt, jf, _) => {
                self.jump_if(JMP32, condition, A, operand, after(jt.into()));
                if jf != 0 {
                    self.jump_to(after(jf.into()));
                }
            }
        }
        Some(())
    }

    fn jump_if(&mut self, class: u8, condition: u8, register: u8, operand: Operand, to: To) {
        self.jumps.push((self.code.len(), to));
        match operand {
            Operand::Reg(other) => self.emit(class | condition | REG, register, other, 0, 0),
            Operand::Imm(number) => self.emit(class | condition, register, 0, 0, number),
        }
    }

    fn jump_to(&mut self, to: To) {
        self.jumps.push((self.code.len(), to));
        self.emit(JMP | JA, 0, 0, 0, 0);
    }

    /// Of 32 bits; the upper half becomes 0.
    fn alu(&mut self, operation: u8, register: u8, operand: Operand) {
        match operand {
            Operand::Reg(other) => self.emit(ALU | operation | REG, register, other, 0, 0),
            Operand::Imm(number) => self.emit(ALU | operation, register, 0, 0, number),
        }
    }

    fn load(&mut self, register: u8, width: u8, base: u8, offset: usize) {
        self.emit(LDX | MEM | width, register, base, offset as u16, 0);
    }

    fn emit(&mut self, code: u8, dst: u8, src: u8, off: u16, imm: u32) {
        self.code.push(Extended { code, dst, src, off, imm });
    }

    /// Adds what jumps for no match lead to, and gives every jump its offset.
    fn finish(mut self) -> Result<Vec<u8>> {
        let no_match = self.code.len();
        if self.jumps.iter().any(|(_, to)| matches!(to, To::NoMatch)) {
            self.alu(MOV, A, Operand::Imm(0));
            self.emit(JMP | EXIT, 0, 0, 0, 0);
        }
        for (at, to) in std::mem::take(&mut self.jumps) {
            let target = match to {
                To::Line(line) => self.starts[line],
                To::Here(target) => target,
                To::NoMatch => no_match,
            };
            let off = i16::try_from(target - at - 1).context("it is too long")?;
            self.code[at].off = off.cast_unsigned();
        }
        Ok(self.code.into_iter().flat_map(Extended::bytes).collect())
    }
}

/// The width that a load's code asks for.
fn part(code: u8) -> Option<Part> {
    let (size, width) = match code & 0x18 {
        W => (4, W),
        H => (2, H),
        B => (1, B),
        _ => return None,
    };
    Some(Part { size, width })
}

fn slot(line: usize, k: u32) -> Result<u32> {
    ensure!(k < 16, "instruction {line} uses word {k} of the scratch memory, which has 16");
    Ok(k)
}

fn memory(slot: u32) -> usize {
    offset_of!(Capture, memory) + 4 * slot as usize
}
