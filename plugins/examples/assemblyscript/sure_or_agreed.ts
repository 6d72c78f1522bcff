// Leaves where the confidence reaches `threshold` (0.9), or where two exits in a row name the same class and the second
// is sure by `floor` (0.6) at least. AssemblyScript cannot name its exports as the contract does:
// `offramp policy build` knows `configure` and `decide` by these names, too.

let threshold: f32 = 0.9;
let least: f32 = 0.6;

// Memory for what the device hands over. It does so once, for `configure`: nothing is ever freed.
export function cabi_realloc(old: usize, oldSize: usize, align: usize, size: usize): usize {
  // AssemblyScript's allocations begin at multiples of 16, more than the contract needs.
  return heap.alloc(size);
}

// Whether the bytes at `at` are this name, of ASCII letters.
function is(at: usize, length: u32, name: string): bool {
  if (length != name.length) return false;
  for (let i: u32 = 0; i < length; i++) {
    if (load<u8>(at + i) != name.charCodeAt(i)) return false;
  }
  return true;
}

// result<_, string>: a byte, and the address and length of a reason.
const result: usize = memory.data(12, 4);
const reason: usize = memory.data<u8>([98, 97, 100, 32, 112, 97, 114, 97, 109, 101, 116, 101, 114]); // bad parameter

export function configure(classes: u32, costs: usize, exits: u32, parameters: usize, count: u32): usize {
  store<u8>(result, 0);
  for (let i: u32 = 0; i < count; i++) {
    // A parameter has 24 bytes: its name's address and length, the kind, and the value at 16.
    const at = parameters + 24 * i;
    const kind = load<u8>(at + 8);
    const number = kind == 1 ? <f64>load<i64>(at + 16) : load<f64>(at + 16);
    const fits = (kind == 1 || kind == 2) && number >= 0 && number <= 1;
    const name = load<u32>(at);
    const length = load<u32>(at + 4);
    if (fits && is(name, length, "threshold")) {
      threshold = <f32>number;
    } else if (fits && is(name, length, "floor")) {
      least = <f32>number;
    } else {
      store<u8>(result, 1);
      store<u32>(result + 4, <u32>reason);
      store<u32>(result + 8, 13);
    }
  }
  return result;
}

export function decide(
  exit: u32, exits: u32, klass: u32, confidence: f32, margin: f32, entropy: f32, agreement: i32, change: f32,
  cost: f32, nextCost: f32, timeLeft: f32, queueDepth: u32, temperature: f32, powerBudget: f32, battery: f32,
  ofDevice: f32
): i32 {
  return confidence >= threshold || (agreement != 0 && confidence >= least) ? 1 : 0;
}
