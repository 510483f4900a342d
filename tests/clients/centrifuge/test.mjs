// The unmodified JavaScript client of Centrifugo against a gateway: node test.mjs PATH/TO/fanwire
//
// 200 channels, errors by number, 10,000 messages in order, pings, and two restarts of the gateway: one that says goodbye and
// one that is killed. Starts its gateways itself, on free ports, and ends them.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { Centrifuge } from 'centrifuge'
import WebSocket from 'ws'

const CHANNELS = 200
const MESSAGES = 10_000
const DEADLINE_MS = 20_000

const binary = process.argv[2] ?? 'fanwire'
const started = new Set()
process.on('exit', () => started.forEach((child) => child.kill('SIGKILL')))
setTimeout(() => { throw new Error('not done within two minutes') }, 120_000).unref()

// A gateway that listens; `port` 0 takes a free one.
async function gateway(port = 0) {
  const settings = {
    'publish.grpc_address': '127.0.0.1:0',
    'publish.http_address': '127.0.0.1:0',
    'shards.count': 2,
    'shards.pin': false,
    'drain.drain_window_ms': 0,
    'centrifugo.channels_per_connection_max': CHANNELS + 10,
    'centrifugo.ping_interval_ms': 1000,
    'centrifugo.pong_timeout_ms': 700,
    'limits.client_messages_burst_max': 2000,
  }
  const sets = Object.entries(settings).flatMap(([key, value]) => ['--set', `${key}=${value}`])
  const child = spawn(binary, ['serve', '--listen', `127.0.0.1:${port}`, ...sets], { stdio: ['ignore', 'pipe', 'inherit'] })
  started.add(child)
  child.once('exit', () => started.delete(child))
  let subscribers, http
  for await (const line of createInterface({ input: child.stdout })) {
    subscribers ??= line.match(/^subscribers\s+(ws:\S+) \(centrifugo\)/)?.[1]
    http ??= line.match(/^HTTP publish (http:\S+)/)?.[1]
    if (subscribers && http) break
  }
  assert(subscribers && http, 'the gateway did not say where it listens')
  child.stdout.resume()
  const api = async (method, body) => {
    const response = await fetch(`${http}/api/${method}`, { method: 'POST', body: JSON.stringify(body) })
    const answer = await response.json()
    assert(response.ok && !answer.error, JSON.stringify(answer))
    return answer
  }
  const end = async (signal) => {
    const ended = once(child, 'exit')
    child.kill(signal)
    await ended
  }
  return { subscribers, port: Number(new URL(subscribers).port), api, end }
}

// Resolves once `condition` holds.
async function until(what, condition) {
  const end = Date.now() + DEADLINE_MS
  while (!condition()) {
    assert(Date.now() < end, `did not happen: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

let server = await gateway()
const client = new Centrifuge(server.subscribers, { websocket: WebSocket, minReconnectDelay: 50, maxReconnectDelay: 300 })
const connecting = []
const connected = []
client.on('connecting', (context) => connecting.push(context.code))
client.on('connected', (context) => connected.push(context.client))
client.on('error', () => {}) // While the gateway is away, every attempt is one.

// 200 channels, asked for before there is a connection: all in one frame with `connect`.
const got = Array.from({ length: CHANNELS }, () => [])
const subscriptions = got.map((list, n) => {
  const subscription = client.newSubscription(`channel-${n}`)
  subscription.on('publication', (context) => list.push([context.data, context.offset]))
  subscription.subscribe()
  return subscription
})
const subscribed = () => subscriptions.every((subscription) => subscription.state === 'subscribed')
client.connect()
await until('200 channels are subscribed', subscribed)
assert.equal(connected.length, 1)
await server.api('broadcast', { channels: got.map((_, n) => `channel-${n}`), data: { hello: 'all' } })
await until('each got its message', () => got.every((list) => list.length === 1))
assert.deepEqual(got[199], [[{ hello: 'all' }, 1]])
assert.deepEqual(await client.ready(), undefined)

// Errors for what is not there, each by its number, and the connection stays.
for (const [channel, code] of [['$private', 103], ['x'.repeat(256), 107]]) {
  const bad = client.newSubscription(channel)
  const ended = new Promise((resolve) => bad.on('unsubscribed', resolve))
  bad.subscribe()
  assert.equal((await ended).code, code, channel)
}
const more = Array.from({ length: 11 }, (_, n) => client.newSubscription(`more-${n}`))
const refused = []
more.forEach((subscription) => subscription.on('unsubscribed', (context) => refused.push(context.code)))
more.forEach((subscription) => subscription.subscribe())
await until('ten more are taken and one is one too many', () =>
  refused.length === 1 && more.filter((subscription) => subscription.state === 'subscribed').length === 10)
assert.deepEqual(refused, [106])
more.forEach((subscription) => subscription.unsubscribe())
await assert.rejects(client.publish('channel-0', {}), { code: 103 })
await assert.rejects(client.history('channel-0', {}), { code: 108 })
await assert.rejects(client.presence('channel-0'), { code: 108 })
await assert.rejects(client.rpc('method', {}), { code: 104 })

// 10,000 messages in order, with their offsets.
for (let n = 0; n < MESSAGES; n += 500) {
  const commands = Array.from({ length: 500 }, (_, i) => ({ publish: { channel: 'channel-0', data: { n: n + i } } }))
  const { replies } = await server.api('batch', { commands })
  assert.equal(replies.filter((reply) => reply.publish).length, 500)
}
await until('10,000 messages', () => got[0].length === MESSAGES + 1)
assert(got[0].slice(1).every(([data, offset], n) => data.n === n && offset === n + 2), 'missed, swapped or twice')

// It answers pings: three and a half intervals later it is still the same connection.
await new Promise((resolve) => setTimeout(resolve, 3500))
assert.deepEqual([client.state, connected.length], ['connected', 1])

// The gateway goes, with a word and without, and another comes: all is as it was.
for (const [signal, code] of [['SIGTERM', 3001], ['SIGKILL', 1]]) {
  const before = connected.length
  connecting.length = 0
  await server.end(signal)
  await until(`${signal} is noticed`, () => client.state === 'connecting')
  assert.equal(connecting[0], code, `after ${signal}`)
  server = await gateway(server.port)
  await until('it is connected and subscribed again', () => connected.length > before && subscribed())
  got.forEach((list) => { list.length = 0 })
  await server.api('broadcast', { channels: got.map((_, n) => `channel-${n}`), data: signal })
  await until('each got its message again', () => got.every((list) => list.length === 1))
  assert(got.every(([[data, offset]]) => data === signal && offset === 1))
}
assert.equal(new Set(connected).size, connected.length, 'names are not used twice')

client.disconnect()
await until('it is disconnected', () => client.state === 'disconnected')
await server.end('SIGTERM')
console.log(`${CHANNELS} channels, ${MESSAGES} messages, ${connected.length} connections: all right`)
process.exit(0)
