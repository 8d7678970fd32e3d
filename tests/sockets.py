"""Connections alone, without a pool"""
import asyncio
import os
import socket
import ssl
import tempfile
from unittest import mock

import lowhaio
from reliability.harness import USE_UVLOOP, AsyncTestCase, full_backlog


class SocketTests(AsyncTestCase):

    def connection(self):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.settimeout(10)
        self._peers.append(theirs)
        return lowhaio.tcp_connection(self.loop, ours, 65536), ours, theirs

    async def blocked_send(self, connection):
        while connection.receive() is None:
            if not connection.send(bytes(65536)):
                await connection.wait(True, 10)

    async def test_a_blocked_send_ends_when_something_comes(self):
        connection, _, theirs = self.connection()
        send = self.loop.create_task(self.blocked_send(connection))
        await asyncio.sleep(0)
        theirs.sendall(b'early')
        await send
        self.assertIsNone(connection.poll())
        connection.close()

    async def test_a_blocked_send_ends_when_the_connection_is_closed(self):
        connection, _, theirs = self.connection()
        send = self.loop.create_task(self.blocked_send(connection))
        await asyncio.sleep(0)
        connection.close()
        with self.assertRaises(ConnectionAbortedError):
            await send

    async def test_in_a_forked_child_only_the_descriptor_is_closed(self):
        connection, ours, theirs = self.connection()
        fileno = ours.fileno()
        with mock.patch('lowhaio.os.getpid', return_value=-1):
            connection.close(b'last')
        self.assertEqual(ours.fileno(), -1)
        self.assertEqual(theirs.recv(10), b'')
        # The parent's selector was left alone; uvloop does not tell.
        self.assertTrue(self.loop.remove_reader(fileno) or USE_UVLOOP)

    async def test_a_timer_that_fires_as_the_wait_ends_does_nothing(self):
        done = self.loop.create_future()
        done.set_result(None)
        lowhaio.time_out(done, 1)
        self.assertIsNone(await done)

    async def test_unix_sockets_connect_by_the_same_function(self):
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            path = os.path.join(folder, 'socket')
            with self.assertRaises(FileNotFoundError):
                await lowhaio.connected_socket(self.loop, socket.AF_UNIX, path, lowhaio.set_sock_options_default, 1)
            listener.bind(path)
            listener.listen(1)
            sock = await lowhaio.connected_socket(
                self.loop, socket.AF_UNIX, path, lowhaio.set_sock_options_default, 1)
            sock.close()

    def test_a_loop_that_is_closed_while_a_socket_connects_leaves_no_socket(self):
        with full_backlog() as port:
            loop = asyncio.SelectorEventLoop()
            connecting = lowhaio.connected_socket(loop, socket.AF_INET, ('127.0.0.1', port), lambda _: None, 10)
            connecting.send(None)
            loop.close()
            connecting.close()

    def test_options_that_an_os_does_not_have_are_left_out(self):
        value = socket.TCP_USER_TIMEOUT
        del socket.TCP_USER_TIMEOUT
        try:
            with socket.socket() as sock:
                lowhaio.set_sock_options_default(sock)
                self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, value), 0)
        finally:
            socket.TCP_USER_TIMEOUT = value
        with socket.socket() as sock:
            lowhaio.set_sock_options_default(sock)
            self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, value), 30000)
            self.assertTrue(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def test_the_default_context_verifies(self):
        context = lowhaio.get_ssl_context_default()
        self.assertEqual((context.verify_mode, context.check_hostname), (ssl.CERT_REQUIRED, True))

    async def test_a_readiness_that_was_none_is_not_an_end(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            with mock.patch('select.poll') as poll:
                poll.return_value.poll.return_value = [(ours.fileno(), 1)]
                connection = lowhaio.tcp_connection(self.loop, ours, 65536)
            self.assertIsNone(connection.poll())
            connection.close()
