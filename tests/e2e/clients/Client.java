// Requests with bodies of all sizes, 8 at a time; prints "done", or fails at the first wrong answer.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.MessageDigest;
import java.time.Duration;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

public class Client {
    static void ask(HttpClient client, String url, int number) throws Exception {
        int size = new int[] {0, 10, 5000, 150000}[number % 4];
        byte[] body = new byte[new int[] {0, 7, 3000, 90000}[(number >> 2) % 4]];
        Arrays.fill(body, (byte) number);
        var request = HttpRequest.newBuilder(URI.create(url + "/length/" + size))
                .timeout(Duration.ofSeconds(5))
                .header("Host", "details:9080")
                .header("x-id", "" + number)
                .POST(HttpRequest.BodyPublishers.ofByteArray(body))
                .build();
        var response = client.send(request, HttpResponse.BodyHandlers.ofByteArray());
        var sum = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(body));
        var told = response.headers();
        if (response.statusCode() != 200 || response.body().length != size
                || !told.firstValue("x-id").orElse("").equals("" + number)
                || !told.firstValue("x-sha256").orElse("").equals(sum)) {
            throw new Exception(number + ": " + response + " " + told.map() + " " + response.body().length);
        }
    }

    public static void main(String[] args) throws Exception {
        System.setProperty("jdk.httpclient.allowRestrictedHeaders", "host");
        var client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        var pool = Executors.newFixedThreadPool(8);
        var asked = new Future<?>[400];
        for (int i = 0; i < asked.length; i++) {
            int number = i;
            asked[i] = pool.submit(() -> {
                ask(client, args[0], number);
                return null;
            });
        }
        for (var one : asked) {
            one.get();
        }
        System.out.println("done");
        System.exit(0);
    }
}
