"use strict";
// What the status page says, and how: text that hides nothing, the name of a proxy, why some are
// missing and since when, a sentence for each event. It shows nothing by itself; page.js does.

const FEW = 10; // claims from which something can be said
const DIALLING = 10; // seconds after a dial began in which agents count as dialling: they pause between dials
const ONE_LINE = 20; // characters that fit into one line of the narrowest column of names
const MOST_PARTS = 16; // of the end that names share

const byId = (id) => document.getElementById(id);
const natural = new Intl.Collator("en", { numeric: true });
const number = new Intl.NumberFormat("en");

// -- text -----------------------------------------------------------------------------------------

// Make visible what is not, and what turns the direction of the text beside it.
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu;
function plain(text) {
  if (text === "") return '""';
  return String(text).replace(INVISIBLE, (char) => `\\u{${char.codePointAt(0).toString(16)}}`);
}

function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  for (const [size, unit, smallSize, small] of [[86400, "d", 3600, "h"], [3600, "h", 60, "m"], [60, "m", 1, "s"]]) {
    if (whole >= size) return `${Math.floor(whole / size)}${unit} ${Math.floor((whole % size) / smallSize)}${small}`;
  }
  return `${whole}s`;
}

function setText(node, text) {
  if (node.textContent !== String(text)) node.textContent = text;
}

function make(tag, className = "", ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

const name = (text) => make("bdi", "", plain(text)); // a name, whichever way it is written

// The longest end, as ".prod.example.com" or "-edge-prod", that more than half of the names have; or "".
function sharedTail(names) {
  const counts = new Map();
  for (const each of names) {
    let begin = each.length;
    for (let parts = 0; parts < MOST_PARTS; parts++) {
      begin = Math.max(each.lastIndexOf(".", begin - 1), each.lastIndexOf("-", begin - 1));
      if (begin < 1) break;
      const tail = each.slice(begin);
      if (/^[!-~]+$/.test(tail)) counts.set(tail, (counts.get(tail) || 0) + 1);
    }
  }
  const shared = [...counts].filter(([, count]) => 2 * count > names.length && count > 1).map(([tail]) => tail);
  return shared.reduce((longest, tail) => (tail.length > longest.length ? tail : longest), "");
}

// What makes the name of a proxy different: all of it but what it shares.
const ownPart = (text, tail) => plain(tail && text.endsWith(tail) ? text.slice(0, -tail.length) : text);

// The name of a proxy: what makes it different stays whole, and what it shares is cut when narrow.
function proxyName(text, tail) {
  if (!tail || !text.endsWith(tail)) return name(text);
  const own = ownPart(text, tail);
  return make("bdi", own.length <= ONE_LINE ? "short" : "", own, make("span", "tail", tail));
}

// -- what things are ------------------------------------------------------------------------------

const STATES = {
  claimed: ["claimed", "claimed"],
  missing: ["missing", "missing"],
  held: ["old held", "old, held"],
  going: ["old", "terminating"],
  leaving: ["old held", "terminating, held"],
  old: ["old", "old"],
  question: ["question", "expired, held"],
};

// Generations have 64 bits, more than a number here can hold exactly.
function compareWide(a, b) {
  const [x, y] = [BigInt(a || 0), BigInt(b || 0)];
  return x < y ? -1 : x > y ? 1 : 0;
}

// As `trackctl proxies` says it: what is neither desired nor of an older generation is terminating.
function stateOf(proxy) {
  if (!proxy.tracked) return "question";
  if (proxy.desired) return proxy.lease === null ? "missing" : "claimed";
  if (compareWide(proxy.generation, proxy.largest) < 0) return proxy.lease === null ? "old" : "held";
  return proxy.lease === null ? "going" : "leaving";
}

// What the proxies of one generation of a group are called. The largest generation of a group is the
// desired one; a newer one is there only while all of its proxies are terminating.
function generationOf(proxies, counts) {
  const { generation, largest } = proxies[0];
  const order = compareWide(generation, largest);
  return order === 0 ? `generation ${generation}` : `generation ${generation}, ${order < 0 ? "old" : "terminating"}: ${counts}`;
}

const proxiesOf = (count) => (count === 1 ? "1 proxy" : `${number.format(count)} proxies`);

// Seconds since the last dial began; null when that is too long ago to count, or unknown.
function secondsSinceDial(state) {
  const begun = state.events.findLast(([, , kind, fields]) => kind === "lease_granted" && fields.reason !== "adopt");
  const ago = begun ? Math.max(0, state.wall - begun[1]) : Infinity;
  return ago <= DIALLING ? ago : null;
}

// Wanted connections that are missing; one to a terminating proxy counts while it is there.
const countMissing = (status) => Math.max(0, status.target - status.claimed_desired - (status.claimed_terminating || 0));

// The headline: the same sentences as `trackctl status`.
function verdict(status, sinceDial) {
  const { target, desired, inflight } = status;
  const missing = countMissing(status);
  if (status.store === "failing") return ["bad", "changes cannot be stored; agents are refused until they can be"];
  if (!status.tracked) return ["wait", "no proxy is known yet; the first dial brings gossip"];
  if (missing <= 0 && target < desired) {
    return ["good", `${number.format(target)} of ${number.format(desired)} proxies ${target === 1 ? "has" : "have"} a tunnel, as many as wanted`];
  }
  if (missing <= 0) return ["good", target === 1 ? "the only proxy has a tunnel" : `all ${number.format(target)} proxies have a tunnel`];
  const wanted = target < desired ? `${number.format(target)} wanted connection${target === 1 ? "" : "s"}` : proxiesOf(target);
  const lacking = `${number.format(missing)} of ${wanted} ${missing === 1 ? "has" : "have"} no tunnel`;
  if (!inflight && sinceDial !== null) return ["warn", `${lacking}; the last dial began ${duration(sinceDial)} ago`];
  if (!inflight) return ["warn", `${lacking}; no agent is dialling`];
  return ["warn", `${lacking}; ${inflight === 1 ? "1 agent is" : `${number.format(inflight)} agents are`} dialling`];
}

// A point in time of the daemon's clock as people read it: the day too, unless it is today.
function clockTime(seconds, state) {
  const [at, today] = [state.wall - (state.clock - seconds), state.wall].map((wall) => new Date(1000 * wall));
  return at.toDateString() === today.toDateString() ? at.toLocaleTimeString("en-GB") : at.toLocaleString("en-GB");
}

// How many tunnels are missing now, when none was last, and for how long all of them together were
// missing: as the line "coverage" of `trackctl status`. Without a tunnel that is wanted it is "".
function coverage(state) {
  const { status } = state;
  if (!status.target && !status.missing_seconds) return "";
  const missing = countMissing(status);
  const full = status.full_at === null
    ? "not full yet"
    : `last full ${duration(state.clock - status.full_at)} ago, at ${clockTime(status.full_at, state)}`;
  const last = status.tracked && !missing && status.store !== "failing"
    ? "Full now"
    : `${number.format(missing)} ${missing === 1 ? "tunnel" : "tunnels"} missing now; ${full}`;
  return `${last}; all tunnels together were missing for ${duration(status.missing_seconds)} since the daemon started.`;
}

// Why proxies are missing, as far as the daemon knows.
function reasonsOf(status, why, sinceDial) {
  if (!countMissing(status)) return [];
  const reasons = [];
  if (why.reason === "budget") reasons.push(`The dial budget allows the next dial in ${duration(why.retry_after)}.`);
  if (why.reason === "backoff") reasons.push(`Dials pause after failures; the next one may begin in ${duration(why.retry_after)}.`);
  if (why.reason === "need" && !status.inflight && !status.waiting && sinceDial === null) reasons.push("No agent asks for a lease at this moment.");
  const { claims, duplicates, met } = why.recent;
  if (claims + duplicates >= FEW && duplicates > claims) {
    reasons.push(`Of the last ${claims + duplicates} claims, ${duplicates} met a proxy that has a tunnel already, most often `,
      name(met[0][0]), ` (${met[0][1]}).`);
  }
  return reasons;
}

const where = (group, generation) => ["generation ", String(generation), ...(group === "" ? [] : [" of ", name(group)])];
const REASONS = {
  asked: "released by its agent", given_up: "its agent stopped waiting", closed: "released by its agent",
  process_exited: "its process exited", no_heartbeat: "no heartbeat arrived", claim_timeout: "it did not claim in time", stale: "its tunnel gave no sign of life",
  admin: "by an admin", handed_over: "its tunnel is replaced", host_lost: "its host was lost",
};
const because = (word) => REASONS[word] || plain(String(word)).replaceAll("_", " ");

const FAILURES = {
  refused: "was refused", timeout: "timed out", tls: "failed in TLS", rate: "met a rate limit", auth: "was not let in", other: "failed",
};
const RESUMED = {
  held: "a dial reached a claimed proxy", stayed_up: "a tunnel stayed up", asked: "by an admin", session_ended: "the session ended",
};
const scope = (f) => (f.scope === "host" ? "the host" : `session ${f.session}`);

const SENTENCES = {
  session_opened: (f) => ["session ", f.session, " opened by ", name(f.name || f.command || `pid ${f.pid}`)],
  session_ended: (f) => ["session ", f.session, " ended: ", because(f.reason)],
  lease_granted: (f) => ["lease ", f.lease, " granted to session ", f.session],
  lease_released: (f) => f.name === null || f.name === undefined
    ? ["lease ", f.lease, `, which had claimed nothing: ${because(f.cause)}`]
    : ["lease ", f.lease, ", which held ", name(f.name), ": ", because(f.cause)],
  proxy_claimed: (f) => [name(f.name), " claimed by lease ", f.lease],
  lease_offered: (f) => [name(f.name), " is offered to other agents by lease ", f.lease],
  lease_renamed: (f) => [name(f.before), ", which lease ", f.lease, " holds, is now called ", name(f.name)],
  proxy_tracked: (f) => [name(f.name), " known: ", ...where(f.group, f.generation)],
  proxy_changed: (f) => [name(f.name), " is now ", ...where(f.group, f.generation), ", was ", ...where(f.old_group, f.old_generation)],
  proxy_marked: (f) => [name(f.name), f.terminating ? " is terminating" : " is not terminating any more"],
  proxy_addressed: (f) => f.address === null
    ? [name(f.name), " has no address any more"]
    : [name(f.name), " can be dialled at ", plain(String(f.address))],
  proxy_expired: (f) => [name(f.name), " expired"],
  proxy_forgotten: (f) => [name(f.name), " forgotten, by an admin"],
  connection_count: (f) => ["connection count ", f.before, " → ", f.count],
  lease_stale: (f) => ["lease ", f.lease, " of session ", f.session, ...(f.name ? [", which holds ", name(f.name), ","] : []), " is stale: it reports no sign of life any more"],
  dial_failed: (f) => ["the dial with lease ", f.lease, " of session ", f.session, " ", FAILURES[f.reason] || plain(String(f.reason))],
  dials_paused: (f) => ["dials of ", scope(f), " pause: the last one ", FAILURES[f.reason] || plain(String(f.reason))],
  dials_resumed: (f) => ["dials of ", scope(f), " go on: ", RESUMED[f.why] || plain(String(f.why))],
  daemon_started: (f) => ["daemon started, epoch ", f.epoch],
};

function sentence(kind, fields) {
  try {
    return SENTENCES[kind](fields).map((part) => (part instanceof Node ? part : plain(part)));
  } catch {
    return [plain(kind), " ", name(JSON.stringify(fields))]; // of a newer daemon
  }
}
