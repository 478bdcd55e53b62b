// Serves an OpenID provider over TLS on a port of 127.0.0.1, with the keys and clients of a file; ends with its standard input.
// Usage: node provider.mjs SETTINGS.json    {"modules", "port", "certificate", "key", "jwks", "clients", "resource", "alg"}
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createServer } from 'node:https';
import { pathToFileURL } from 'node:url';

const settings = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const { default: Provider } = await import(
  pathToFileURL(createRequire(`${settings.modules}/any.js`).resolve('oidc-provider')));

const server = createServer({ cert: readFileSync(settings.certificate), key: readFileSync(settings.key) });
server.listen(settings.port, '127.0.0.1', () => {
  const issuer = `https://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    jwks: settings.jwks,
    clients: settings.clients,
    cookies: { keys: ['of a test'] },
    features: {
      devInteractions: { enabled: true }, // a login page that takes any name
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: () => ({
          scope: 'operate', audience: settings.resource, accessTokenFormat: 'jwt', accessTokenTTL: 600,
          jwt: { sign: { alg: settings.alg } },
        }),
      },
    },
    clientBasedCORS: () => false,
    findAccount: (_context, sub) => ({ accountId: sub, claims: () => ({ sub }) }),
  });
  server.on('request', provider.callback());
  process.stdout.write(`${issuer}\n`);
});
process.stdin.resume().on('end', () => process.exit(0));
