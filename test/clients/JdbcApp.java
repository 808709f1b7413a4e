import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.Date;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Timestamp;
import java.sql.Types;
import java.time.LocalDate;
import java.time.OffsetDateTime;
import java.time.ZoneOffset;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.UUID;

/**
 * JDBC, as an application uses it: JdbcApp URL. Prints lines of TAP.
 */
public class JdbcApp {
    private static final String NAME = "Åsa Öberg-Żółć \uD83C\uDF93";
    private static final String SSN = "20140501-1234";
    private static final LocalDate BORN = LocalDate.of(2014, 5, 1);
    private static final OffsetDateTime SEEN =
        OffsetDateTime.of(2024, 2, 29, 12, 30, 15, 250_000_000, ZoneOffset.UTC);
    private static final UUID TOKEN = UUID.fromString("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11");
    private static final byte[] PHOTO = {0, -1, '\'', '\\', 'j'};

    private static int number = 0;

    private static void ok(boolean passed, String name, Object... why) {
        number++;
        System.out.println((passed ? "ok - " : "not ok - ") + name);
        if (!passed) {
            System.out.println("#   " + Arrays.deepToString(why).replace('\n', ' '));
        }
    }

    private static void same(Object got, Object expected, String name) {
        ok(Objects.deepEquals(got, expected), name, got, expected);
    }

    private static SQLException error(NompCrypt.Work work, Connection connection) {
        try {
            work.run(connection);
            return null;
        } catch (SQLException caught) {
            return caught;
        }
    }

    private static PreparedStatement prepare(Connection c, String sql, Object... values)
        throws SQLException {
        PreparedStatement statement = c.prepareStatement(sql);
        for (int i = 0; i < values.length; i++) {
            statement.setObject(i + 1, values[i]);
        }
        return statement;
    }

    private static List<String> names(Connection c, String where, Object... values)
        throws SQLException {
        List<String> found = new ArrayList<>();
        String sql = "SELECT name FROM person WHERE " + where + " ORDER BY name";
        try (PreparedStatement statement = prepare(c, sql, values);
             ResultSet rows = statement.executeQuery()) {
            while (rows.next()) {
                found.add(rows.getString(1));
            }
        }
        return found;
    }

    private static void write(Connection c) throws SQLException {
        String sql = "INSERT INTO person (name, born, active, points, weight, seen, token,"
            + " photo, notes, tags, ssn) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?::jsonb, ?, ?)";
        prepare(c, sql, NAME, BORN, true, 42, new BigDecimal("31.50"), SEEN, TOKEN, PHOTO,
            "{\"allergy\": [\"nuts\"]}", c.createArrayOf("text", new String[] {"a", "b \"c\""}),
            SSN).execute();
        PreparedStatement statement = c.prepareStatement(sql);
        statement.setString(1, "Bertil");
        statement.setDate(2, Date.valueOf("2013-12-31"));
        statement.setBoolean(3, false);
        statement.setInt(4, -7);
        statement.setBigDecimal(5, new BigDecimal("40.25"));
        statement.setTimestamp(6, Timestamp.valueOf("2023-01-01 00:00:00"));
        statement.setObject(7, TOKEN);
        statement.setBytes(8, new byte[0]);
        statement.setNull(9, Types.VARCHAR);
        statement.setNull(10, Types.ARRAY);
        statement.setString(11, "20131231-5678");
        statement.addBatch();
        for (int i = 1; i <= 11; i++) {
            statement.setNull(i, Types.NULL);
        }
        statement.addBatch();
        same(statement.executeBatch(), new int[] {1, 1}, "a batch");
    }

    private static void read(Connection c) throws SQLException {
        // More often than the driver's prepareThreshold: from the fifth time
        // on it asks for binary where it knows the type.
        for (int i = 0; i < 7; i++) {
            PreparedStatement statement = prepare(c, "SELECT * FROM person WHERE ssn = ?", SSN);
            ResultSet rows = statement.executeQuery();
            ok(rows.next(), "a row for a searchable value, time " + i);
            if (i > 0 && i < 6) {
                continue;
            }
            same(rows.getString("name"), NAME, "getString");
            same(rows.getDate("born"), Date.valueOf(BORN), "getDate");
            same(NompCrypt.get(rows, "born", LocalDate.class), BORN, "a LocalDate");
            same(rows.getBoolean("active"), true, "getBoolean");
            same(rows.getInt("points"), 42, "getInt");
            same(rows.getLong("points"), 42L, "getLong");
            same(rows.getBigDecimal("weight"), new BigDecimal("31.50"), "getBigDecimal");
            same(rows.getTimestamp("seen").toInstant(), SEEN.toInstant(), "getTimestamp");
            ok(NompCrypt.get(rows, "seen", OffsetDateTime.class).isEqual(SEEN),
                "an OffsetDateTime", rows.getString("seen"));
            same(NompCrypt.get(rows, "token", UUID.class), TOKEN, "a UUID");
            same(NompCrypt.get(rows, "photo", byte[].class), PHOTO, "a byte[]");
            same(rows.getString("notes"), "{\"allergy\": [\"nuts\"]}", "JSON, as text");
            same(rows.getString("tags"), "{a,\"b \\\"c\\\"\"}", "an array, as text");
            same(rows.getMetaData().getColumnTypeName(3), "encrypted", "the column's type");
        }
        ResultSet rows = prepare(c, "SELECT born, active, name, tags::text[] FROM person"
            + " WHERE name IS NULL OR name = ?", NAME).executeQuery();
        while (rows.next()) {
            if (rows.getString("name") == null) {
                same(rows.getDate("born"), null, "NULL is null");
                same(rows.getBoolean("active"), false, "and not false:");
                ok(rows.wasNull(), "wasNull");
            } else {
                same(rows.getArray("tags").getArray(), new String[] {"a", "b \"c\""},
                    "an array, by a cast");
            }
        }
    }

    private static void compare(Connection c) throws SQLException {
        List<String> anna = List.of(NAME);
        List<String> bertil = List.of("Bertil");
        List<String> both = List.of("Bertil", NAME);

        same(names(c, "ssn = ANY (?)",
            c.createArrayOf("text", new String[] {SSN, "20131231-5678"})), both, "= ANY (array)");
        same(names(c, "ssn IN (?, ?)", SSN, "20131231-5678"), both, "IN");
        same(names(c, "ssn <> ?", SSN), bertil, "<>");
        same(names(c, "name = ?", NAME), anna, "= on others");
        same(names(c, "born = ?", BORN), anna, "= a LocalDate");
        same(names(c, "born < ?", Date.valueOf(BORN)), bertil, "< a java.sql.Date");
        same(names(c, "active = ?", false), bertil, "= a boolean");
        same(names(c, "points > ?", 0), anna, "> an int");
        same(names(c, "points > ?", 0L), anna, "> a long");
        same(names(c, "weight >= ?", new BigDecimal("40")), bertil, ">= a BigDecimal");
        same(names(c, "seen < ?", SEEN), bertil, "< an OffsetDateTime");
        same(names(c, "token = ?", TOKEN), both, "= a UUID");
        same(names(c, "name LIKE ?", "%Öberg%"), anna, "LIKE");
        same(names(c, "name ILIKE ?", "BERT%"), bertil, "ILIKE");
        ResultSet rows = prepare(c, "SELECT born FROM person WHERE born IS NOT NULL"
            + " ORDER BY born DESC").executeQuery();
        rows.next();
        same(rows.getDate(1), Date.valueOf(BORN), "ORDER BY a date");
        try (PreparedStatement update =
                 prepare(c, "UPDATE person SET born = ?, points = ? WHERE ssn = ?",
                     BORN.plusDays(1), 43, SSN)) {
            same(update.executeUpdate(), 1, "an update");
        }
        same(names(c, "born = ? AND points = ?", BORN.plusDays(1), 43), anna, "is there");
    }

    private static void cursor(Connection c) throws SQLException {
        PreparedStatement statement =
            prepare(c, "SELECT name FROM person WHERE name IS NOT NULL ORDER BY born DESC");
        List<String> found = new ArrayList<>();
        statement.setFetchSize(1);
        ResultSet rows = statement.executeQuery();
        while (rows.next()) {
            found.add(rows.getString(1));
        }
        same(found, List.of(NAME, "Bertil"), "fetched one by one");
    }

    private static void changingSchools(Connection connection) throws SQLException {
        List<String> found = new ArrayList<>();
        connection.setAutoCommit(false);
        try (PreparedStatement add =
                 connection.prepareStatement("INSERT INTO person (name, ssn) VALUES (?, ?)");
             PreparedStatement find =
                 connection.prepareStatement("SELECT name FROM person WHERE ssn = ?")) {
            for (int i = 0; i < 14; i++) {
                NompCrypt.setTenant(connection, i % 2 == 0 ? "south" : "north");
                add.setString(1, "person " + i);
                add.setString(2, "same " + i / 2);
                add.execute();
                find.setString(1, "same " + i / 2);
                try (ResultSet rows = find.executeQuery()) {
                    while (rows.next()) {
                        found.add(rows.getString(1).substring(7));
                    }
                }
                connection.commit();
            }
        }
        connection.setAutoCommit(true);
        same(String.join(",", found), "0,1,2,3,4,5,6,7,8,9,10,11,12,13",
            "prepared statements that change schools");
    }

    private static void errors(Connection connection) throws SQLException {
        SQLException found = error(c -> NompCrypt.inTenant(c, "north",
            d -> prepare(d, "INSERT INTO person (ssn) VALUES (?)", SSN).execute()), connection);
        ok(found != null && found.getSQLState().equals("23505"), "a duplicate has SQLState 23505",
            found);
        found = error(c -> prepare(c, "INSERT INTO person (name) VALUES (?)", "nobody's").execute(),
            connection);
        ok(found != null && found.getSQLState().equals("NC006")
            && found.getMessage().contains("nomp_crypt.tenant"),
            "without a tenant: NC006, and what to do", found);
        ResultSet rows = prepare(connection,
            "SELECT born FROM person WHERE born IS NOT NULL LIMIT 1").executeQuery();
        rows.next();
        ok(rows.getString(1).startsWith("nc1:"), "without a tenant a date is ciphertext");
        found = error(c -> NompCrypt.setTenant(c, "north"), connection);
        ok(found != null && found.getMessage().contains("setAutoCommit(false)"),
            "setTenant needs a transaction", found);
    }

    public static void main(String[] arguments) throws SQLException {
        System.setOut(new java.io.PrintStream(System.out, true, StandardCharsets.UTF_8));
        try (Connection connection = DriverManager.getConnection(arguments[0])) {
            NompCrypt.inTenant(connection, "north", JdbcApp::write);
            NompCrypt.inTenant(connection, "north", JdbcApp::read);
            NompCrypt.inTenant(connection, "north", JdbcApp::compare);
            NompCrypt.inTenant(connection, "north", JdbcApp::cursor);
            changingSchools(connection);
            errors(connection);
        }
        System.out.println("1.." + number);
    }
}
