"use strict";
// The status page: asks for /api/state every second, and for /api/proxies when something has
// changed; shows both. It changes nothing. Names come from outside: they are only ever text.

const EVERY = 1000; // milliseconds between two questions
const HIDDEN = 5000; // the same while nobody looks
const PATIENCE = 6000; // for one answer
const EXPIRIES = 5000; // after which proxies are asked for although nothing has changed
const SHOWN = 100; // rows at first
const MOST_MISSING = 10; // names at the top
const MOST_HOSTS = 20; // of a fleet
const SAMPLES = 120; // of a rate
const RATES = ["grants", "claims", "duplicates"];

let now = null; // the last answer of /api/state
let listing = null; // the last answer of /api/proxies
let tail = ""; // that the names in it share
let listingAsOf = ""; // what it was asked for
let listingAt = -Infinity;
let ahead = 0; // how far the daemon's clock is ahead of this page's, in seconds
let lastSeen = null; // performance.now() of the last answer
let samples = [];
let sortBy = ""; // missing first, then by name
let descending = false;
let showAll = false;
const seenEvents = new Set();

// -- showing --------------------------------------------------------------------------------------

function showSummary(state) {
  const { status, why } = state;
  const sinceDial = secondsSinceDial(state);
  const [mood, sentence] = verdict(status, sinceDial);
  const words = sentence[0].toUpperCase() + sentence.slice(1);
  setText(byId("verdict"), words);
  const reasons = reasonsOf(status, why, sinceDial);
  byId("why").hidden = reasons.length === 0;
  byId("why").replaceChildren(...reasons.flatMap((reason) => [reason, " "]));
  const covered = coverage(state);
  byId("coverage").hidden = covered === "";
  setText(byId("coverage"), covered);
  if (document.body.dataset.mood !== mood) setText(byId("spoken"), words); // aloud, but not each number
  byId("summary").dataset.mood = document.body.dataset.mood = mood;
  setText(byId("cluster"), plain(status.cluster));
  setText(byId("claimed"), number.format(status.claimed_desired));
  setText(byId("claimed-of"), `of ${number.format(status.target)}`);
  for (const count of ["inflight", "waiting", "sessions", "tracked"]) setText(byId(count), number.format(status[count]));
  const peering = status.connection_count > 0;
  setText(byId("mode"), peering ? "peering" : "mesh");
  setText(byId("mode-of"), peering ? `at most ${number.format(status.connection_count)}` : "one to each");
  const share = (part) => `${status.target ? Math.min(100, (100 * part) / status.target) : 0}%`;
  byId("bar-claimed").style.width = share(status.claimed_desired);
  byId("bar-inflight").style.width = share(Math.min(status.inflight, Math.max(0, status.target - status.claimed_desired)));
  setText(byId("daemon"), `trackd ${plain(status.server)}, pid ${status.pid}, up ${duration(status.uptime)}, epoch ${status.epoch}, ` +
    `revision ${number.format(status.revision)}, store ${plain(status.store_problem || status.store)}`);
  document.title = `${status.claimed_desired}/${status.target} ${plain(status.cluster)} · trackd`;
  showIcon(mood);
}

// The names that are missing, at the top of the page: on a phone the table is far below.
function showMissing(status) {
  const found = countMissing(status) ? listing.proxies.filter((proxy) => stateOf(proxy) === "missing") : [];
  const names = found.map((proxy) => proxy.name).sort(natural.compare).slice(0, MOST_MISSING);
  const more = Math.max(found.length, status.desired - status.claimed_desired) - names.length;
  const list = byId("missing");
  const key = JSON.stringify([names, tail, more]);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  list.hidden = names.length === 0;
  list.replaceChildren(...names.map((text) => {
    const cut = tail && text.endsWith(tail) ? "…" : "";
    const button = make("button", "", make("bdi", "", ownPart(text, tail), cut));
    button.type = "button";
    button.title = plain(text);
    button.setAttribute("aria-label", plain(text));
    button.addEventListener("click", () => filterBy(plain(text)));
    return make("li", "", button);
  }));
  if (more > 0) list.append(make("li", "", `and ${number.format(more)} more`));
}

function showIcon(mood) {
  const colour = { good: "#12a06f", warn: "#e08a1e", bad: "#d8405a" }[mood] || "#9aa0a8";
  const drawing = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect x="2" y="2" width="12" height="12" rx="4" fill="${colour}"/></svg>`;
  const href = `data:image/svg+xml,${encodeURIComponent(drawing)}`;
  if (byId("icon").href !== href) byId("icon").href = href;
}

function showRates() {
  for (const rate of RATES) {
    let line = byId(`rate-${rate}`);
    if (!line) {
      const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      drawing.setAttribute("viewBox", `0 0 ${SAMPLES - 1} 28`);
      drawing.setAttribute("preserveAspectRatio", "none");
      drawing.setAttribute("aria-hidden", "true");
      for (const kind of ["area", "line"]) {
        const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
        path.setAttribute("class", kind);
        drawing.append(path);
      }
      line = make("div", `rate ${rate}`, make("span", "", rate), drawing, make("b"));
      line.id = `rate-${rate}`;
      byId("rates").append(line);
    }
    const values = [];
    for (let i = 1; i < samples.length; i++) {
      const seconds = samples[i].clock - samples[i - 1].clock;
      // A counter begins again with the daemon.
      values.push(Math.max(0, samples[i].counters[rate] - samples[i - 1].counters[rate]) / Math.max(seconds, 0.001));
    }
    const most = Math.max(1, ...values);
    const points = values.map((value, i) => `${SAMPLES - values.length + i},${(27 - (26 * value) / most).toFixed(1)}`);
    const [area, top] = line.querySelectorAll("path");
    area.setAttribute("d", points.length ? `M${SAMPLES - values.length},28L${points.join("L")}L${SAMPLES - 1},28Z` : "");
    top.setAttribute("d", points.length ? `M${points.join("L")}` : "");
    const last = values.slice(-3);
    const mean = last.reduce((sum, value) => sum + value, 0) / (last.length || 1);
    const text = mean === 0 ? "0" : mean < 10 ? mean.toFixed(1) : number.format(Math.round(mean));
    if (line.dataset.text !== text) {
      line.dataset.text = text;
      line.lastChild.replaceChildren(text, make("small", "", " /s"));
    }
  }
}

function etcdWord(etcd) {
  const answers = etcd.members.filter((each) => each.answers).length;
  const full = Math.max(0, ...etcd.members.filter((each) => each.quota).map((each) => each.size / each.quota));
  const alarms = etcd.alarms.map((each) => `, ${plain(each.kind)} at ${plain(each.member)}`).join("");
  return `etcd: ${answers} of ${etcd.members.length} members answer, ${Math.round(100 * full)} % of its quota used${alarms}`;
}

// Only in a fleet: who leads, who stands by, how etcd is, and the hosts, those that are silent first.
function showFleet(fleet) {
  byId("fleet").hidden = fleet === undefined;
  if (fleet === undefined) return;
  const standby = fleet.candidates.filter((each) => !each.leads).map((each) => plain(each.host));
  setText(byId("leader"), `${plain(fleet.leader)} leads, term ${fleet.term}, for ${duration(fleet.uptime)}; failovers: ${number.format(fleet.failovers)}; standing by: ${standby.join(", ") || "none"}`);
  setText(byId("etcd"), fleet.etcd ? etcdWord(fleet.etcd) : "");
  const hosts = [...fleet.hosts].sort((a, b) => a.connected - b.connected || natural.compare(a.host, b.host));
  const shown = hosts.slice(0, MOST_HOSTS).map((each) => [each.host, each.connected, each.sessions]);
  const key = JSON.stringify([shown, hosts.length]);
  const list = byId("hosts");
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  list.replaceChildren(...shown.map(([host, connected, sessions]) => make("li", connected ? "connected" : "silent",
    make("i"), make("span", "", name(host)), make("span", "dim", connected ? `sessions: ${number.format(sessions)}` : "silent"))));
  if (hosts.length > shown.length) list.append(make("li", "dim", `and ${number.format(hosts.length - shown.length)} more`));
}

function showEvents(events) {
  const list = byId("events");
  const first = seenEvents.size === 0;
  for (const [revision, wall, kind, fields] of events) {
    const key = `${revision} ${kind} ${wall}`;
    if (seenEvents.has(key)) continue;
    seenEvents.add(key);
    const at = new Date(1000 * wall);
    const time = make("time", "", at.toLocaleTimeString("en-GB"));
    time.dateTime = at.toISOString();
    time.title = `${at.toLocaleString()}, revision ${revision}`;
    const item = make("li", kind.replace(/\W/g, "_"), make("i"), make("span", "", ...sentence(kind, fields)), time);
    if (!first) item.classList.add("new");
    list.querySelector(".empty")?.remove();
    list.prepend(item);
  }
  while (list.children.length > 50) list.lastChild.remove();
  if (seenEvents.size > 5000) { // what the daemon does not send any more needs no key
    seenEvents.clear();
    for (const [revision, wall, kind] of events) seenEvents.add(`${revision} ${kind} ${wall}`);
  }
  if (!list.children.length) {
    const text = now.history === 0 ? "No history is kept: the setting history is 0." : "Nothing has happened yet.";
    list.append(make("li", "empty", text));
  }
}

function holderOf(proxy) {
  if (proxy.lease === null) return "";
  const holder = listing.holders[proxy.session] || {};
  return holder.name || holder.command || "unnamed agent";
}

const cells = new Map(); // of each proxy, by its name
const cards = new Map(); // of each group, by its key

function showGroups() {
  const groups = new Map();
  for (const proxy of listing.proxies) {
    const key = proxy.tracked ? `g${proxy.group}` : "question";
    if (!groups.has(key)) groups.set(key, new Map());
    const generations = groups.get(key);
    const generation = proxy.tracked ? proxy.generation : "";
    if (!generations.has(generation)) generations.set(generation, []);
    generations.get(generation).push(proxy);
  }
  const size = listing.proxies.length > 400 ? 11 : listing.proxies.length > 120 ? 15 : 22;
  const counted = new Map(now.status.groups.map((group) => [`g${group.group}`, group]));
  for (const key of counted.keys()) if (!groups.has(key)) groups.set(key, new Map());
  const keys = [...groups.keys()].sort((a, b) => (a === "question") - (b === "question") || natural.compare(a, b));
  const gaps = new Map(now.status.missing_by_group.filter((gap) => gap.group !== null).map((gap) => [`g${gap.group}`, gap]));
  const kept = new Set();
  for (const key of keys) {
    let card = cards.get(key);
    if (!card) {
      const title = key === "question" ? "no longer known" : key === "g" ? "unnamed group" : name(key.slice(1));
      card = make("div", "card group", make("div", "head", make("h3", "", title), make("p", "of dim")), make("div"));
      cards.set(key, card);
    }
    const generations = [...groups.get(key)].sort(([a], [b]) => compareWide(b, a));
    const total = generations.reduce((sum, [, proxies]) => sum + proxies.length, 0);
    card.classList.toggle("wide", total * (size + 4) > 1800);
    showCount(card.querySelector(".of"), counted.get(key), total, gaps.get(key));
    showGenerations(card.lastChild, generations, size, kept);
  }
  for (const [key, card] of cards) {
    if (!groups.has(key)) {
      card.remove();
      cards.delete(key);
    }
  }
  for (const proxy of cells.keys()) if (!kept.has(proxy)) cells.delete(proxy);
  arrange(byId("groups"), keys.length ? keys.map((key) => cards.get(key)) : [emptyGroups]);
  const more = now.status.group_count - now.status.groups.length;
  byId("groups-more").hidden = more <= 0;
  setText(byId("groups-more"), `and ${number.format(more)} groups more`);
}

const emptyGroups = make("p", "card empty", "No proxy is known yet. The first agent that dials brings gossip.");

function showCount(node, group, total, gap) {
  const missed = gap && gap.missing_seconds >= 1 ? `, missing for ${duration(gap.missing_seconds)}` : "";
  const text = (group ? `${group.claimed}/${group.desired}` : `${total}`) + missed;
  if (node.dataset.text === text) return;
  node.dataset.text = text;
  node.classList.toggle("full", Boolean(group) && group.claimed >= group.desired);
  node.replaceChildren(
    make("b", "", number.format(group ? group.claimed : total)),
    (group ? ` of ${number.format(group.desired)}` : " held") + missed,
  );
}

function showGenerations(box, generations, size, kept) {
  const listed = listing.more ? "the listed " : "";
  const blocks = generations.map(([generation, proxies], i) => {
    const block = box.children[i] || make("div", "generation", make("p"), make("div", "cells"));
    const held = proxies.filter((proxy) => proxy.lease !== null).length;
    setText(block.firstChild, generation === "" ? "gossip of them has expired, their tunnels are held" :
      generationOf(proxies, `${number.format(held)} of ${listed}${number.format(proxies.length)} held`));
    const grid = block.lastChild;
    grid.style.setProperty("--size", `${size}px`);
    grid.setAttribute("role", "img");
    grid.setAttribute("aria-label", `${held} of ${listed}${proxies.length} held; the table below has each`);
    proxies.sort((a, b) => natural.compare(a.name, b.name));
    arrange(grid, proxies.map((proxy) => cellOf(proxy, kept)));
    return block;
  });
  arrange(box, blocks);
}

function cellOf(proxy, kept) {
  kept.add(proxy.name);
  let cell = cells.get(proxy.name);
  if (!cell) cells.set(proxy.name, (cell = make("i")));
  const [className, words] = STATES[stateOf(proxy)];
  if (cell.className !== `cell ${className}`) cell.className = `cell ${className}`;
  const title = `${plain(proxy.name)}: ${words}${proxy.lease === null ? "" : `, by ${plain(holderOf(proxy))} (pid ${proxy.pid})`}`;
  if (cell.title !== title) cell.title = title;
  cell.dataset.name = proxy.name;
  return cell;
}

// Give a node these children in this order, and touch none that is right already.
function arrange(parent, children) {
  children.forEach((child, i) => {
    if (parent.children[i] !== child) parent.insertBefore(child, parent.children[i] || null);
  });
  while (parent.children.length > children.length) parent.lastChild.remove();
}

// -- the table ------------------------------------------------------------------------------------

const ORDER = ["missing", "question", "held", "claimed", "leaving", "old", "going"];
const byDefault = { of: (proxy) => Number(stateOf(proxy) !== "missing") };
const COLUMNS = [
  { key: "name", title: "Proxy", of: (proxy) => proxy.name, compare: natural.compare },
  { key: "state", title: "State", of: (proxy) => STATES[stateOf(proxy)][1], sort: (proxy) => ORDER.indexOf(stateOf(proxy)) },
  { key: "holder", title: "Agent", of: holderOf, compare: natural.compare },
  { key: "pid", title: "pid", of: (proxy) => proxy.pid },
  { key: "lease", title: "Lease", of: (proxy) => proxy.lease },
  { key: "group", title: "Group", of: (proxy) => proxy.group, sort: (proxy) => proxy, compare: compareGroups },
  { key: "expires", title: "Expires", of: (proxy) => proxy.expires },
];

function compareGroups(a, b) {
  return natural.compare(a.group ?? "\uffff", b.group ?? "\uffff") || compareWide(a.generation, b.generation);
}

function makeColumns() {
  for (const column of COLUMNS) {
    const button = make("button", "", column.title);
    button.type = "button";
    button.addEventListener("click", () => {
      descending = sortBy === column.key && !descending;
      sortBy = column.key;
      showTable();
    });
    const head = make("th", column.key, button);
    head.scope = "col";
    head.setAttribute("role", "columnheader");
    byId("columns").append(head);
  }
}

function chosen() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const column = COLUMNS.find((each) => each.key === sortBy) || byDefault;
  const key = column.sort || column.of;
  const compare = column.compare || ((a, b) => a - b);
  const sign = descending ? -1 : 1;
  return listing.proxies
    .filter((proxy) => {
      const text = [proxy.name, plain(proxy.name), proxy.group ?? "", STATES[stateOf(proxy)][1], holderOf(proxy), `pid ${proxy.pid}`,
        `lease ${proxy.lease}`, `session ${proxy.session}`].join("\n").toLowerCase();
      return words.every((word) => text.includes(word));
    })
    .sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      const [noX, noY] = [x === null || x === "", y === null || y === ""]; // these come last, either way
      return noX - noY || (noX ? 0 : sign * compare(x, y)) || natural.compare(a.name, b.name);
    });
}

function showTable() {
  [...byId("columns").children].forEach((head, i) => {
    if (COLUMNS[i].key === sortBy) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
  if (!listing) return;
  const found = chosen();
  const most = showAll ? found.length : SHOWN;
  const body = byId("rows");
  found.slice(0, most).forEach((proxy, i) => showRow(body.children[i] || body.appendChild(makeRow()), proxy));
  while (body.children.length > Math.min(most, found.length)) body.lastChild.remove();
  const all = listing.proxies.length;
  const what = listing.more ? `the first ${number.format(all)}, missing ones first; trackctl proxies lists all` : number.format(all);
  setText(byId("shown"), byId("filter").value.trim() ? `${number.format(found.length)} of ${what}` : what);
  byId("all").hidden = found.length <= SHOWN;
  setText(byId("all"), showAll ? `Show the first ${SHOWN}` : `Show all ${number.format(found.length)}`);
}

function makeRow() {
  const row = make("tr");
  row.setAttribute("role", "row");
  for (const column of COLUMNS) {
    const plainly = ["name", "state", "holder"].includes(column.key);
    const cell = make("td", plainly ? column.key : `detail ${column.key}`);
    cell.setAttribute("role", "cell");
    cell.dataset.label = column.title.toLowerCase();
    row.append(cell);
  }
  return row;
}

function showRow(row, proxy) {
  const [className] = STATES[stateOf(proxy)];
  if (row.className !== className) row.className = className;
  COLUMNS.forEach((column, i) => {
    const cell = row.children[i];
    const value = column.of(proxy);
    let text = value === null || value === "" ? "" : String(value);
    let small = "";
    if (column.key === "expires" && value !== null) text = duration(value - (performance.now() / 1000 + ahead));
    if (column.key === "group" && value !== null) [text, small] = [value || "unnamed", `generation ${proxy.generation}`];
    if (column.key === "lease" && text) small = `session ${proxy.session}`;
    if (column.key === "holder" && text) {
      const command = listing.holders[proxy.session]?.command || "";
      if (command !== text) small = command;
    }
    const key = `${text}\n${small}\n${column.key === "name" ? tail : ""}`;
    if (cell.dataset.key === key) return;
    cell.dataset.key = key;
    cell.title = column.key === "holder" ? plain(small || text) : "";
    const named = column.key === "name" || (column.key === "group" && value);
    const shown = column.key === "name" ? proxyName(text, tail) : named ? name(text) : plain(text);
    cell.replaceChildren(...(text ? [shown] : []), ...(small ? [make("small", "", column.key === "holder" ? name(small) : small)] : []));
  });
}

// -- asking ---------------------------------------------------------------------------------------

async function ask(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
  if (!response.ok) throw new Error((await response.text()).trim());
  return response.json();
}

async function refresh() {
  const before = now;
  now = await ask("/api/state");
  lastSeen = performance.now();
  ahead = now.clock - lastSeen / 1000;
  if (before && before.status.server !== now.status.server) location.reload(); // the daemon was upgraded
  if (before && before.status.tracker_id !== now.status.tracker_id) { // its state was lost
    seenEvents.clear();
    byId("events").replaceChildren();
  }
  if (before && before.status.epoch !== now.status.epoch) samples = [];
  if (!samples.length || samples.at(-1).clock < now.clock) samples.push({ clock: now.clock, counters: now.counters });
  samples = samples.slice(-SAMPLES);
  const asOf = `${now.status.tracker_id} ${now.status.revision}`;
  if (asOf !== listingAsOf || lastSeen - listingAt > EXPIRIES) {
    listing = await ask("/api/proxies");
    tail = sharedTail(listing.proxies.map((proxy) => proxy.name));
    [listingAsOf, listingAt] = [asOf, lastSeen];
  }
  showSummary(now);
  showMissing(now.status);
  showRates();
  showFleet(now.fleet);
  showEvents(now.events);
  showGroups();
  showTable();
}

function showLink(problem) {
  const link = byId("link");
  link.className = problem === null ? "pill live" : "pill away";
  byId("main").classList.toggle("stale", problem !== null);
  if (problem === null) return setText(link, "live");
  document.body.dataset.mood = "away";
  setText(byId("spoken"), problem);
  document.title = "no answer · trackd";
  showIcon("bad");
  const since = lastSeen === null ? "" : ` for ${duration((performance.now() - lastSeen) / 1000)}`;
  setText(link, `${problem}${since}, trying again`);
}

let wake = () => {};
async function live() {
  for (;;) {
    try {
      await refresh();
      showLink(null);
    } catch (error) {
      const reached = !(error instanceof TypeError || error.name === "TimeoutError");
      showLink(reached ? plain(error.message) : "no answer");
      if (reached) console.warn(error);
    }
    await new Promise((resolve) => {
      wake = resolve;
      setTimeout(resolve, document.hidden ? HIDDEN : EVERY);
    });
  }
}

byId("filter").addEventListener("input", showTable);
byId("all").addEventListener("click", () => {
  showAll = !showAll;
  showTable();
});
function filterBy(text) {
  byId("filter").value = text;
  showTable();
  byId("proxies").scrollIntoView({ behavior: "smooth" });
}
byId("groups").addEventListener("click", (event) => {
  if (event.target.dataset.name !== undefined) filterBy(plain(event.target.dataset.name));
});
for (const button of byId("legend").querySelectorAll("button")) {
  button.addEventListener("click", () => filterBy(button.textContent));
}
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && event.target !== byId("filter") && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    byId("filter").focus();
  } else if (event.key === "Escape" && event.target === byId("filter")) {
    byId("filter").value = "";
    showTable();
  }
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) wake();
});
makeColumns();
showTable();
live();
